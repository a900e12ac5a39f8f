// Certificates made while a test runs, as PEM: an authority, what it issues, and faulty ones.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace attention::testing {

// A certificate and its private key, neither of which a passphrase locks.
struct CertifiedKey {
  std::string certificate;
  std::string key;
};

// The contents of a certificate. The default fits a server on this host and a client of any name.
struct CertificateOptions {
  std::string common_name = "localhost";
  std::vector<std::string> dns_names = {"localhost"};
  std::vector<std::string> ip_addresses = {"127.0.0.1", "::1"};
  std::vector<std::string> uris = {};  // "spiffe://example.org/tenant/acme"
  absl::Time not_before = {};          // the epoch: an hour ago
  absl::Time not_after = {};           // the epoch: tomorrow
};

// Options of a client's certificate that holds one URI and no other name.
CertificateOptions NamedByUri(const std::string& uri);
// Options of a client's certificate that holds one DNS name and no other name.
CertificateOptions NamedByDns(const std::string& name);
// The same certificate, but its time ended an hour ago, or begins tomorrow.
CertificateOptions Expired(CertificateOptions options = {});
CertificateOptions NotYetValid(CertificateOptions options = {});

// Two authorities have different keys, also if they have one name.
class CertificateAuthority {
 public:
  explicit CertificateAuthority(const std::string& name = "test authority");
  ~CertificateAuthority();
  CertificateAuthority(const CertificateAuthority&) = delete;
  CertificateAuthority& operator=(const CertificateAuthority&) = delete;

  const std::string& certificate() const { return certificate_; }
  CertifiedKey Issue(const CertificateOptions& options = {}) const;

 private:
  struct Parts;

  const std::unique_ptr<const Parts> parts_;
  const std::string certificate_;
};

// A certificate that only itself vouches for.
CertifiedKey SelfSigned(const CertificateOptions& options = {});

// A private key that belongs to no certificate.
std::string NewPrivateKey();

}  // namespace attention::testing
