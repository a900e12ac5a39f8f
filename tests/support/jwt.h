// JSON Web Tokens and their key sets, made for a test.
#pragma once

#include <cjose/cjose.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace attention::testing {

// A key that signs tokens.
class JwtKey {
 public:
  static JwtKey Rsa(std::string id) {
    const std::uint8_t exponent[] = {1, 0, 1};
    return {std::move(id), cjose_jwk_create_RSA_random(2048, exponent, sizeof(exponent), nullptr)};
  }
  static JwtKey Ec(std::string id) {
    return {std::move(id), cjose_jwk_create_EC_random(CJOSE_JWK_EC_P_256, nullptr)};
  }
  static JwtKey Symmetric(std::string id) {
    return {std::move(id), cjose_jwk_create_oct_random(256, nullptr)};
  }

  // As it stands in a key set.
  nlohmann::json PublicJson() const { return Json(/*with_private=*/false); }
  nlohmann::json PrivateJson() const { return Json(/*with_private=*/true); }

  // `header` is merged into {"alg": ALG, "kid": ID}.
  std::string Sign(const std::string& algorithm, const nlohmann::json& claims,
                   const nlohmann::json& more_header = nlohmann::json::object()) const {
    nlohmann::json header = {{"alg", algorithm}};
    if (!id_.empty()) header["kid"] = id_;
    header.update(more_header);
    cjose_header_t* made = cjose_header_new(nullptr);
    for (const auto& [name, value] : header.items()) {
      if (value.is_string()) {
        cjose_header_set(made, name.c_str(), value.get<std::string>().c_str(), nullptr);
      } else {
        cjose_header_set_raw(made, name.c_str(), value.dump().c_str(), nullptr);
      }
    }
    const std::string text = claims.dump();
    cjose_jws_t* jws = cjose_jws_sign(
        key_.get(), made, reinterpret_cast<const std::uint8_t*>(text.data()), text.size(), nullptr);
    cjose_header_release(made);
    EXPECT_NE(jws, nullptr) << algorithm;
    if (jws == nullptr) return "";
    const char* compact = nullptr;
    cjose_jws_export(jws, &compact, nullptr);
    const std::string token = compact;
    cjose_jws_release(jws);
    return token;
  }

 private:
  JwtKey(std::string id, cjose_jwk_t* key) : id_(std::move(id)), key_(key, cjose_jwk_release) {}

  nlohmann::json Json(bool with_private) const {
    char* text = cjose_jwk_to_json(key_.get(), with_private, nullptr);
    nlohmann::json json = nlohmann::json::parse(text);
    std::free(text);
    if (!id_.empty()) json["kid"] = id_;
    return json;
  }

  std::string id_;
  std::unique_ptr<cjose_jwk_t, decltype(&cjose_jwk_release)> key_;
};

inline std::string KeySet(std::initializer_list<nlohmann::json> keys) {
  return nlohmann::json{{"keys", nlohmann::json(keys)}}.dump();
}

// A token whose header says that nobody has signed it.
inline std::string UnsignedToken(const std::string& algorithm, const nlohmann::json& claims) {
  const std::string header = nlohmann::json{{"alg", algorithm}}.dump();
  return absl::StrCat(absl::WebSafeBase64Escape(header), ".",
                      absl::WebSafeBase64Escape(claims.dump()), ".");
}

}  // namespace attention::testing
