#include "client/flags/connection_flags.h"

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/client/version.h"

namespace attention::client {
namespace {

constexpr char kGroup[] = "Connection";

// Any flag about TLS turns it on.
TlsOptions& Tls(ClientOptions* options) {
  if (!options->tls.has_value()) options->tls.emplace();
  return *options->tls;
}

void AddTlsFlags(CLI::App& app, ClientOptions* options) {
  app.add_flag_callback(
         "--tls", [options] { Tls(options); }, "TLS, as every other --tls-... turns on too")
      ->group(kGroup);
  const auto add = [&](const char* flag, std::string TlsOptions::*field, const char* type,
                       const char* help) {
    app.add_option_function<std::string>(
           flag, [options, field](const std::string& value) { Tls(options).*field = value; }, help)
        ->type_name(type)
        ->group(kGroup);
  };
  add("--tls-ca", &TlsOptions::ca_file, "FILE",
      "Certificates of the authorities that vouch for servers (the system's)");
  add("--tls-cert", &TlsOptions::certificate_file, "FILE", "The client's own certificate");
  add("--tls-key", &TlsOptions::key_file, "FILE", "The key of --tls-cert");
  add("--tls-server-name", &TlsOptions::server_name, "NAME",
      "Expected in servers' certificates (the target's host)");
}

void AddMetadata(const std::string& text, ClientOptions* options) {
  const std::size_t end = text.find('=');
  if (end == std::string::npos) {
    throw CLI::ValidationError(absl::StrCat("--metadata is \"", text, "\", expected KEY=VALUE"));
  }
  options->metadata.emplace_back(text.substr(0, end), text.substr(end + 1));
}

}  // namespace

void AddConnectionFlags(CLI::App& app, ClientOptions* options) {
  AddTlsFlags(app, options);
  app.add_option("--token-file", options->token.file,
                 "Holds the bearer token of every call; read again when it changes")
      ->type_name("FILE")
      ->group(kGroup);
  app.add_flag("--allow-unencrypted-token", options->token.allow_unencrypted,
               "Send the token without TLS to other hosts, too")
      ->group(kGroup);
  app.add_option_function<std::string>(
         "--tenant", [options](const std::string& value) { options->tenant = value; },
         "Whose requests these are (as the credentials say)")
      ->group(kGroup);
  app.add_option_function<std::vector<std::string>>(
         "--metadata",
         [options](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) AddMetadata(text, options);
         },
         "Sent with every call; can be repeated")
      ->type_name("KEY=VALUE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(kGroup);
}

std::optional<ClientOptions> ParseConnection(int argc, char** argv, const char* program,
                                             const char* about, int* exit_code) {
  constexpr int kWrongFlags = 2;
  ClientOptions options;
  options.targets = {"127.0.0.1:7070"};
  CLI::App app(about, program);
  app.add_option_function<std::string>(
         "--target", [&options](const std::string& target) { options.targets = {target}; },
         "The server, host:port or unix:path (127.0.0.1:7070)")
      ->type_name("ADDR");
  app.set_version_flag("--version", absl::StrCat(program, " ", std::string(Version())));
  AddConnectionFlags(app, &options);
  try {
    app.parse(argc, argv);
    return options;
  } catch (const CLI::ParseError& error) {
    *exit_code = app.exit(error) == 0 ? 0 : kWrongFlags;
    return std::nullopt;
  }
}

}  // namespace attention::client
