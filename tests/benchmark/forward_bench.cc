// A layer's Forward beside what it is made of: oneDNN's matmuls on all cores, with OpenMP and with
// the rows as they come, and the attention kernel, back to back in the same process. Interleaved
// repetitions, medians. Then many small layers in turn beside one alone.
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <oneapi/dnnl/dnnl.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "attention/client/client.h"
#include "kernels/registry.h"
#include "server/base/background_thread.h"
#include "server/server_app.h"

namespace attention {
namespace {

using Clock = std::chrono::steady_clock;

struct Case {
  const char* name;
  int rows;  // of one causal sequence
  int model_dim;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
};

constexpr Case kCases[] = {
    {"F1", 512, 768, 12, 12, 64},   // a prompt through a layer of 768
    {"F2", 128, 384, 12, 12, 32},   // a sentence through one of MiniLM's
    {"F3", 256, 2048, 16, 4, 128},  // grouped-query
    {"F4", 1, 768, 12, 12, 64},     // one row: bound by reading the weights
    {"F5", 16, 768, 12, 12, 64},
};

std::vector<float> Random(std::size_t count, float scale) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

double Seconds(const std::function<void()>& work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <typename T>
T OrExit(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
  std::exit(1);
}

// y = x W^T + b as oneDNN does it when left alone: packed weights, all threads, all rows at once.
class PlainMatmul {
 public:
  PlainMatmul(std::int64_t rows, std::int64_t in, std::int64_t out)
      : x_(Random(rows * in, 1)), bias_(out), y_(rows * out) {
    using dnnl::memory;
    const auto f32 = memory::data_type::f32;
    const memory::desc x({rows, in}, f32, memory::format_tag::ab);
    const memory::desc w({in, out}, f32, memory::format_tag::any);
    const memory::desc b({1, out}, f32, memory::format_tag::ab);
    const memory::desc y({rows, out}, f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc desc({x, w, b, y}, engine_);
    matmul_ = dnnl::matmul(desc);
    std::vector<float> weights = Random(in * out, 0.03f);
    memory plain({{in, out}, f32, memory::format_tag::ba}, engine_, weights.data());
    memory packed(desc.weights_desc(), engine_);
    dnnl::reorder(plain, packed).execute(stream_, plain, packed);
    stream_.wait();
    arguments_ = {{DNNL_ARG_SRC, memory(x, engine_, x_.data())},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_BIAS, memory(b, engine_, bias_.data())},
                  {DNNL_ARG_DST, memory(y, engine_, y_.data())}};
  }

  void Run() {
    matmul_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::vector<float> x_, bias_, y_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// The attention of a case on a backend of its own.
class PlainAttention {
 public:
  PlainAttention(const Case& c, int threads)
      : backend_(OrExit(MakeBackend("cpu", {threads}))),
        q_(Random(std::size_t(c.rows) * c.num_q_heads * c.head_dim, 1)),
        kv_(Random(std::size_t(c.rows) * c.num_kv_heads * c.head_dim, 1)),
        o_(q_.size()) {
    task_.params = {c.num_q_heads, c.num_kv_heads, c.head_dim, c.head_dim};
    task_.params.softmax_scale = DefaultSoftmaxScale(c.head_dim);
    task_.params.is_causal = true;
    task_.q_len = task_.kv_len = c.rows;
    const auto rows = [&](const std::vector<float>& data, int heads) {
      return DenseRows(static_cast<const void*>(data.data()), DType::kFloat32, heads, c.head_dim);
    };
    task_.q = rows(q_, c.num_q_heads);
    task_.k = task_.v = rows(kv_, c.num_kv_heads);
    task_.o = DenseRows(static_cast<void*>(o_.data()), DType::kFloat32, c.num_q_heads, c.head_dim);
  }

  void Run() {
    auto plan = OrExit(backend_->Plan({&task_, 1}));
    if (!backend_->Run(*plan).ok()) std::exit(1);
  }

 private:
  std::unique_ptr<AttentionBackend> backend_;
  std::vector<float> q_, kv_, o_;
  AttentionTask task_;
};

client::LayerOptions LayerOf(const Case& c, const std::vector<float>& weights) {
  const auto w = [&](std::int64_t out, std::int64_t in) {
    return client::TensorView(std::span(weights).first(out * in), {out, in});
  };
  const std::int64_t q = std::int64_t{c.num_q_heads} * c.head_dim;
  const std::int64_t kv = std::int64_t{c.num_kv_heads} * c.head_dim;
  client::LayerOptions options;
  options.config = {.model_dim = c.model_dim,
                    .num_q_heads = c.num_q_heads,
                    .num_kv_heads = c.num_kv_heads,
                    .head_dim_qk = c.head_dim,
                    .attention = {.is_causal = true}};
  options.weights = {.w_q = w(q, c.model_dim),
                     .w_k = w(kv, c.model_dim),
                     .w_v = w(kv, c.model_dim),
                     .w_o = w(c.model_dim, q)};
  return options;
}

void RunCase(const Case& c, client::Client& client, int threads, double seconds,
             server::BackgroundThread& openmp) {
  const auto on_openmp = [&](const std::function<void()>& work) {
    absl::Notification done;
    openmp.Post([&] {
      work();
      done.Notify();
    });
    done.WaitForNotification();
  };
  const std::int64_t q = std::int64_t{c.num_q_heads} * c.head_dim;
  const std::int64_t qkv = q + std::int64_t{2} * c.num_kv_heads * c.head_dim;
  std::unique_ptr<PlainMatmul> in, out;
  on_openmp([&] {
    omp_set_num_threads(threads);
    in = std::make_unique<PlainMatmul>(c.rows, c.model_dim, qkv);
    out = std::make_unique<PlainMatmul>(c.rows, q, c.model_dim);
  });
  PlainAttention attention(c, threads);
  const std::vector<float> weights = Random(std::size_t(q) * c.model_dim, 0.03f);
  const auto layer = OrExit(client.CreateLayer(LayerOf(c, weights)));
  const std::vector<float> x = Random(std::size_t(c.rows) * c.model_dim, 1);
  const client::ForwardRequest request{.x = {x, {c.rows, c.model_dim}}};

  std::vector<double> matmuls, attentions, forwards, computes;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < end || matmuls.size() < 5) {
    on_openmp([&] {
      matmuls.push_back(Seconds([&] {
        in->Run();
        out->Run();
      }));
    });
    attentions.push_back(Seconds([&] { attention.Run(); }));
    client::Timing timing;
    forwards.push_back(Seconds([&] { timing = OrExit(layer.Forward(request)).timing; }));
    computes.push_back(absl::ToDoubleSeconds(timing.compute));
  }
  const double parts = Median(matmuls) + Median(attentions);
  std::printf("%-4s %6d %6d %3d/%-3d %9.3f %9.3f %9.3f %5.0f %% %9.3f %5.0f %%\n", c.name, c.rows,
              c.model_dim, c.num_q_heads, c.num_kv_heads, 1e3 * Median(matmuls),
              1e3 * Median(attentions), 1e3 * Median(computes), 100 * parts / Median(computes),
              1e3 * Median(forwards), 100 * parts / Median(forwards));
  if (!layer.Delete().ok()) std::exit(1);
}

// Calls a second through `count` layers in turn.
double RatePerSecond(const std::vector<client::Layer>& layers, std::size_t count,
                     const client::ForwardRequest& request, double seconds) {
  std::size_t calls = 0;
  const double taken = Seconds([&] {
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    for (; Clock::now() < end; ++calls) OrExit(layers[calls % count].Forward(request));
  });
  return static_cast<double>(calls) / taken;
}

void RunMany(client::Client& client, double seconds) {
  const Case small{"", 4, 64, 4, 4, 16};
  std::vector<client::Layer> layers;
  std::vector<float> weights = Random(64 * 64, 0.1f);
  for (int i = 0; i < 1000; ++i) {
    weights[0] = static_cast<float>(i);
    layers.push_back(OrExit(client.CreateLayer(LayerOf(small, weights))));
  }
  const std::vector<float> x = Random(4 * 64, 1);
  const client::ForwardRequest request{.x = {x, {4, 64}}};
  std::vector<double> one, many;
  for (int round = 0; round < 7; ++round) {
    one.push_back(RatePerSecond(layers, 1, request, seconds / 7));
    many.push_back(RatePerSecond(layers, layers.size(), request, seconds / 7));
  }
  std::printf("\n1000 layers of 64 in turn: %.0f calls/s, one alone: %.0f calls/s (%.0f %%)\n",
              Median(many), Median(one), 100 * Median(many) / Median(one));
}

int Main(int argc, char** argv) {
  CLI::App app{"A layer's Forward beside oneDNN's matmuls and the attention kernel"};
  int threads = 0;
  double seconds = 1;
  std::string filter;
  app.add_option("--threads", threads, "Compute threads; 0: one a core");
  app.add_option("--seconds", seconds, "For each case")->check(CLI::Range(0.0, 600.0));
  app.add_option("--filter", filter, "Only the cases whose name has this; M: many layers");
  app.set_version_flag("--version", "attention-forward-bench " ATTENTION_VERSION);
  CLI11_PARSE(app, argc, argv);
  if (threads == 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  server::ServerConfig config;
  config.listen = {"127.0.0.1:0"};
  config.admin_listen = "";
  config.threads = threads;
  config.log_level = "error";
  const auto server = OrExit(server::ServerApp::Start(config));
  const auto client = OrExit(client::Client::Connect({.targets = {server->addresses().front()}}));
  server::BackgroundThread openmp;
  std::printf("%d threads; ms, and the parts' time as a share of Forward's\n", threads);
  std::printf("%-4s %6s %6s %7s %9s %9s %9s %7s %9s %7s\n", "case", "rows", "dim", "heads",
              "matmuls", "attention", "compute", "", "call", "");
  for (const Case& c : kCases) {
    if (std::string(c.name).find(filter) == std::string::npos) continue;
    RunCase(c, *client, threads, seconds, openmp);
  }
  if (filter.empty() || filter == "M") RunMany(*client, seconds);
  return 0;
}

}  // namespace
}  // namespace attention

int main(int argc, char** argv) { return attention::Main(argc, argv); }
