#include "server/wire/preload_file.h"

#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/v1/layer_service.pb.h"
#include "server/base/status_macros.h"
#include "server/layer/layer_table.h"
#include "server/wire/json_lines.h"
#include "server/wire/layer_decoder.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr std::size_t kMaxTenantBytes = 128;  // as in a call's metadata
constexpr std::size_t kMaxTextBytes = 80;

std::string TextOf(const Json& value) {
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > kMaxTextBytes) text = text.substr(0, kMaxTextBytes) + "...";
  return text;
}

// Reads one layer's object.
class LayerReader {
 public:
  LayerReader(const JsonLines& file, std::string path, const std::filesystem::path& folder)
      : file_(file), path_(std::move(path)), folder_(folder) {}

  absl::StatusOr<PreloadedLayer> Read(const Json& object) {
    if (!object.is_object()) return Wrong(path_, object, "an object");
    for (const auto& [key, value] : object.items()) {
      ATTENTION_RETURN_IF_ERROR(ReadKey(key, value, absl::StrCat(path_, ".", key)));
    }
    ATTENTION_RETURN_IF_ERROR(CheckNames());
    const bool has_dtype = config_.dtype() != v1::DTYPE_UNSPECIFIED;
    if (!has_dtype) config_.set_dtype(v1::DTYPE_FLOAT32);  // the tensors' own takes its place
    auto spec = DecodeLayerConfig(config_);
    if (!spec.ok()) return AtKey(spec.status());
    layer_.spec = *std::move(spec);
    if (has_dtype) layer_.dtype = layer_.spec.dtype;
    return std::move(layer_);
  }

 private:
  absl::Status ReadKey(const std::string& key, const Json& value, const std::string& path) {
    if (key == "layer_id") return ReadString(value, path, &layer_.layer_id);
    if (key == "tenants") return ReadTenants(value, path);
    if (key == "file") return ReadString(value, path, &layer_.file);
    if (key == "tensors") return ReadTensorNames(value, path);
    if (v1::AttentionConfig::descriptor()->FindFieldByName(key) != nullptr) {
      return ReadField(key, value, path, config_.mutable_attention());
    }
    if (key == "attention") {
      return file_.Invalid(path, "is unknown, expected its keys beside the layer's own");
    }
    return ReadField(key, value, path, &config_);
  }

  absl::Status Wrong(const std::string& path, const Json& value, absl::string_view expected) const {
    return file_.Invalid(path, absl::StrCat("is ", TextOf(value), ", expected ", expected));
  }

  absl::Status ReadString(const Json& value, const std::string& path, std::string* text) const {
    if (!value.is_string() || value.get<std::string>().empty()) {
      return Wrong(path, value, "a string that is not empty");
    }
    *text = value.get<std::string>();
    return absl::OkStatus();
  }

  absl::Status ReadTenants(const Json& list, const std::string& path) {
    if (!list.is_array() || list.empty()) return Wrong(path, list, "a list of tenants' names");
    for (const Json& entry : list) {
      const std::string at = absl::StrCat(path, "[", layer_.tenants.size(), "]");
      std::string tenant;
      ATTENTION_RETURN_IF_ERROR(ReadString(entry, at, &tenant));
      if (tenant.size() > kMaxTenantBytes ||
          !std::all_of(tenant.begin(), tenant.end(),
                       [](unsigned char c) { return absl::ascii_isprint(c); })) {
        return file_.Invalid(at, absl::StrCat("has ", tenant.size(), " bytes, expected 1 to ",
                                              kMaxTenantBytes, " printable characters of ASCII"));
      }
      if (std::find(layer_.tenants.begin(), layer_.tenants.end(), tenant) != layer_.tenants.end()) {
        return Wrong(at, entry, "each tenant once");
      }
      layer_.tenants.push_back(std::move(tenant));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensorNames(const Json& object, const std::string& path) {
    if (!object.is_object()) return Wrong(path, object, "an object");
    for (const auto& [key, value] : object.items()) {
      const std::string at = absl::StrCat(path, ".", key);
      int tensor = 0;
      while (tensor < kNumLayerTensors &&
             LayerTensorName(static_cast<LayerTensor>(tensor)) != key) {
        ++tensor;
      }
      if (tensor == kNumLayerTensors) {
        return file_.Invalid(at, "is unknown, expected w_q, w_k, w_v, w_o, b_q, b_k, b_v or b_o");
      }
      ATTENTION_RETURN_IF_ERROR(
          ReadString(value, at, &layer_.tensors[static_cast<LayerTensor>(tensor)]));
    }
    return absl::OkStatus();
  }

  absl::Status ReadMessage(const Json& object, const std::string& path, Message* message) const {
    if (!object.is_object()) return Wrong(path, object, "an object");
    for (const auto& [key, value] : object.items()) {
      ATTENTION_RETURN_IF_ERROR(ReadField(key, value, absl::StrCat(path, ".", key), message));
    }
    return absl::OkStatus();
  }

  absl::Status ReadField(const std::string& key, const Json& value, const std::string& path,
                         Message* message) const {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(key);
    if (field == nullptr) return file_.Invalid(path, "is unknown, expected another key");
    const google::protobuf::Reflection& reflection = *message->GetReflection();
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return ReadScalar(*field, value, path, message);
    }
    if (field->message_type() == v1::Tensor::descriptor()) {
      return ReadVector(value, path,
                        static_cast<v1::Tensor*>(reflection.MutableMessage(message, field)));
    }
    if (const auto* oneof = field->real_containing_oneof();
        oneof != nullptr && reflection.HasOneof(*message, oneof)) {
      return file_.Invalid(path,
                           absl::StrCat("is a second ", oneof->name(), ", expected at most one"));
    }
    return ReadMessage(value, path, reflection.MutableMessage(message, field));
  }

  // A number, a name, or a list of them, as protobuf reads them.
  absl::Status ReadScalar(const FieldDescriptor& field, const Json& value, const std::string& path,
                          Message* message) const {
    const std::unique_ptr<Message> read(message->New());
    const Json object = {{field.name(), value}};
    if (google::protobuf::util::JsonStringToMessage(object.dump(), read.get()).ok()) {
      message->MergeFrom(*read);
      return absl::OkStatus();
    }
    const std::string type =
        field.type() == FieldDescriptor::TYPE_ENUM ? field.enum_type()->name() : field.type_name();
    return Wrong(path, value, absl::StrCat(field.is_repeated() ? "a list of " : "", type));
  }

  absl::Status ReadVector(const Json& value, const std::string& path, v1::Tensor* tensor) const {
    const bool is_vector =
        value.is_array() && std::all_of(value.begin(), value.end(),
                                        [](const Json& element) { return element.is_number(); });
    if (!is_vector) return Wrong(path, value, "a list of numbers");
    tensor->set_dtype(v1::DTYPE_FLOAT32);
    tensor->add_shape(static_cast<std::int64_t>(value.size()));
    const auto floats = value.get<std::vector<float>>();
    tensor->set_data(floats.data(), floats.size() * sizeof(float));
    return absl::OkStatus();
  }

  absl::Status CheckNames() {
    if (layer_.layer_id.empty()) {
      return file_.Invalid(path_ + ".layer_id", "is missing, expected a name");
    }
    if (auto status = CheckLayerId(layer_.layer_id); !status.ok()) return AtKey(status);
    if (layer_.file.empty()) {
      return file_.Invalid(path_ + ".file", "is missing, expected a .safetensors file");
    }
    layer_.file = (folder_ / layer_.file).string();
    return absl::OkStatus();
  }

  // An error of the decoder, which begins with the field's path within LayerConfig.
  absl::Status AtKey(const absl::Status& status) const {
    absl::string_view message = status.message();
    absl::ConsumePrefix(&message, "attention.");
    const std::size_t end = std::min(message.find(' '), message.size());
    return file_.Invalid(absl::StrCat(path_, ".", message.substr(0, end)),
                         std::string(absl::StripLeadingAsciiWhitespace(message.substr(end))));
  }

  const JsonLines& file_;
  const std::string path_;
  const std::filesystem::path& folder_;
  PreloadedLayer layer_;
  v1::LayerConfig config_;
};

}  // namespace

absl::StatusOr<std::vector<PreloadedLayer>> ReadPreloadFile(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) return absl::NotFoundError(absl::StrCat(path, " cannot be opened"));
  std::stringstream text;
  text << stream.rdbuf();
  ATTENTION_ASSIGN_OR_RETURN(const JsonLines file, JsonLines::Parse(path, text.str()));
  const Json& root = file.root();
  if (!root.is_object() || !root.contains("layers") || !root["layers"].is_array()) {
    return file.Invalid("", "expected a JSON object with a list named layers");
  }
  for (const auto& [key, value] : root.items()) {
    if (key != "layers") return file.Invalid(key, "is unknown, expected layers alone");
  }
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::vector<PreloadedLayer> layers;
  for (const Json& entry : root["layers"]) {
    LayerReader reader(file, absl::StrCat("layers[", layers.size(), "]"), folder);
    ATTENTION_ASSIGN_OR_RETURN(PreloadedLayer layer, reader.Read(entry));
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace attention::server
