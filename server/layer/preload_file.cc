#include "server/layer/preload_file.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;

// Reads the keys of one object; every key must be read by the end.
class ObjectReader {
 public:
  ObjectReader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail("is no object");
  }

  template <typename Value>
  void Read(const char* key, Value* value) {
    const Json* found = Take(key);
    if (found == nullptr) return;
    const bool fits = std::is_same_v<Value, bool>          ? found->is_boolean()
                      : std::is_same_v<Value, std::string> ? found->is_string()
                      : std::is_integral_v<Value>          ? found->is_number_integer()
                                                           : found->is_number();
    if (!fits) return Fail(absl::StrCat(key, " is ", found->dump(), ", which has the wrong type"));
    *value = found->get<Value>();
  }

  // Null when it is not there.
  const Json* Take(const char* key) {
    if (!object_.is_object()) return nullptr;
    taken_.insert(key);
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }

  void Fail(const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", what));
  }

  absl::Status Finish() {
    for (auto it = object_.begin(); object_.is_object() && it != object_.end(); ++it) {
      if (taken_.count(it.key()) == 0)
        Fail(absl::StrCat("the key ", Quoted(it.key()), " is unknown"));
    }
    return status_;
  }

 private:
  const Json& object_;
  const std::string where_;
  std::set<std::string> taken_;
  absl::Status status_;
};

absl::Status ReadScaling(const Json& json, const std::string& where, RotaryScaling scaling,
                         RotaryParams* rotary) {
  ObjectReader reader(json, where);
  rotary->scaling = scaling;
  reader.Read("factor", &rotary->factor);
  if (scaling != RotaryScaling::kLinear) {
    reader.Read("original_max_positions", &rotary->original_max_positions);
  }
  if (scaling == RotaryScaling::kLlama3) {
    reader.Read("low_freq_factor", &rotary->low_freq_factor);
    reader.Read("high_freq_factor", &rotary->high_freq_factor);
  }
  if (scaling == RotaryScaling::kYarn) {
    rotary->attention_factor = DefaultAttentionFactor(rotary->factor);
    reader.Read("beta_fast", &rotary->beta_fast);
    reader.Read("beta_slow", &rotary->beta_slow);
    reader.Read("attention_factor", &rotary->attention_factor);
  }
  return reader.Finish();
}

absl::Status ReadRotary(const Json& json, const std::string& where, int head_dim_qk,
                        RotaryParams* rotary) {
  ObjectReader reader(json, where);
  rotary->dim = head_dim_qk;
  reader.Read("theta", &rotary->theta);
  reader.Read("dim", &rotary->dim);
  reader.Read("is_interleaved", &rotary->is_interleaved);
  const std::pair<const char*, RotaryScaling> scalings[] = {{"linear", RotaryScaling::kLinear},
                                                            {"llama3", RotaryScaling::kLlama3},
                                                            {"yarn", RotaryScaling::kYarn}};
  for (const auto& [key, scaling] : scalings) {
    const Json* found = reader.Take(key);
    if (found == nullptr) continue;
    if (rotary->scaling != RotaryScaling::kNone) {
      reader.Fail(absl::StrCat(key, " is a second scaling, expected at most one"));
      continue;
    }
    ATTENTION_RETURN_IF_ERROR(ReadScaling(*found, absl::StrCat(where, ".", key), scaling, rotary));
  }
  return reader.Finish();
}

void ReadSpec(ObjectReader& reader, LayerSpec* spec) {
  reader.Read("model_dim", &spec->model_dim);
  spec->output_dim = spec->model_dim;
  reader.Read("context_dim", &spec->context_dim);
  reader.Read("output_dim", &spec->output_dim);
  AttentionParams& params = spec->attention;
  reader.Read("num_q_heads", &params.num_q_heads);
  params.num_kv_heads = params.num_q_heads;
  reader.Read("num_kv_heads", &params.num_kv_heads);
  reader.Read("head_dim_qk", &params.head_dim_qk);
  params.head_dim_v = params.head_dim_qk;
  reader.Read("head_dim_v", &params.head_dim_v);
  if (params.head_dim_qk > 0) params.softmax_scale = DefaultSoftmaxScale(params.head_dim_qk);
  reader.Read("softmax_scale", &params.softmax_scale);
  reader.Read("soft_cap", &params.soft_cap);
  reader.Read("is_causal", &params.is_causal);
  reader.Read("window_left", &params.window_left);
  reader.Read("window_right", &params.window_right);
  reader.Read("sink_tokens", &params.sink_tokens);
}

absl::StatusOr<PreloadedLayer> ReadLayer(const Json& json, const std::string& where,
                                         const std::filesystem::path& folder) {
  ObjectReader reader(json, where);
  PreloadedLayer layer;
  reader.Read("layer_id", &layer.layer_id);
  if (layer.layer_id.empty()) reader.Fail("layer_id is missing, expected a name");
  reader.Read("tenant", &layer.tenant);
  reader.Read("file", &layer.file);
  layer.file = (folder / layer.file).string();
  ReadSpec(reader, &layer.spec);
  if (const Json* rotary = reader.Take("rotary"); rotary != nullptr) {
    ATTENTION_RETURN_IF_ERROR(ReadRotary(*rotary, where + ".rotary",
                                         layer.spec.attention.head_dim_qk,
                                         &layer.spec.rotary.emplace()));
  }
  if (const Json* tensors = reader.Take("tensors"); tensors != nullptr) {
    ObjectReader names(*tensors, where + ".tensors");
    for (int i = 0; i < kNumLayerTensors; ++i) {
      const auto tensor = static_cast<LayerTensor>(i);
      std::string name;
      names.Read(std::string(LayerTensorName(tensor)).c_str(), &name);
      if (!name.empty()) layer.tensors[tensor] = name;
    }
    ATTENTION_RETURN_IF_ERROR(names.Finish());
  }
  ATTENTION_RETURN_IF_ERROR(reader.Finish());
  return layer;
}

}  // namespace

absl::StatusOr<std::vector<PreloadedLayer>> ReadPreloadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, " cannot be opened"));
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  ObjectReader reader(json, path);
  std::vector<PreloadedLayer> layers;
  const Json* entries = reader.Take("layers");
  if (entries == nullptr || !entries->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a JSON object with a list named layers"));
  }
  for (std::size_t i = 0; i < entries->size(); ++i) {
    ATTENTION_ASSIGN_OR_RETURN(PreloadedLayer layer,
                               ReadLayer((*entries)[i], absl::StrCat(path, ": layers[", i, "]"),
                                         std::filesystem::path(path).parent_path()));
    layers.push_back(std::move(layer));
  }
  ATTENTION_RETURN_IF_ERROR(reader.Finish());
  return layers;
}

}  // namespace attention::server
