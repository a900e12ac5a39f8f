// A library for LD_PRELOAD that lets operator new of the program itself fail at random: one call in
// ATTENTION_FAILING_NEW, between one SIGUSR2 and the next, which prints how many failed.
//
// Calls of gRPC, Abseil, protobuf and the log's libraries succeed, also where they come from code
// that they call: those end the process when memory is out (tests/chaos/allocations.py).
#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr int kMaxFrames = 64;
constexpr const char* kOthers[] = {"libgrpc", "libabsl", "libproto", "libspdlog", "libfmt"};

struct Program {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  std::uint64_t one_in = 0;
} program;

std::atomic<bool> is_armed{false};
std::atomic<long> num_failed{0};

// The first object is the program.
int FindProgram(dl_phdr_info* info, std::size_t, void*) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || (part.p_flags & PF_X) == 0) continue;
    program.begin = info->dlpi_addr + part.p_vaddr;
    program.end = program.begin + part.p_memsz;
  }
  return 1;
}

void OnSignal(int) {
  is_armed = !is_armed;
  char text[64];
  const int size = std::snprintf(text, sizeof(text), "failing allocations: %s, %ld failed\n",
                                 is_armed ? "on" : "off", num_failed.load());
  if (write(STDERR_FILENO, text, static_cast<std::size_t>(size)) < 0) std::abort();
}

__attribute__((constructor)) void SetUp() {
  const char* one_in = std::getenv("ATTENTION_FAILING_NEW");
  if (one_in == nullptr) return;
  program.one_in = std::strtoull(one_in, nullptr, 10);
  dl_iterate_phdr(FindProgram, nullptr);
  void* frames[2];
  backtrace(frames, 2);  // loads what it needs, which allocates
  std::signal(SIGUSR2, OnSignal);
}

bool IsOthers(void* frame) {
  Dl_info info;
  if (dladdr(frame, &info) == 0 || info.dli_fname == nullptr) return false;
  for (const char* name : kOthers) {
    if (std::strstr(info.dli_fname, name) != nullptr) return true;
  }
  return false;
}

bool IsProgramsAlone() {
  static thread_local bool is_looking = false;
  if (is_looking) return false;
  is_looking = true;
  void* frames[kMaxFrames];
  const int count = backtrace(frames, kMaxFrames);
  bool is_alone = true;
  for (int i = 0; i < count && is_alone; ++i) is_alone = !IsOthers(frames[i]);
  is_looking = false;
  return is_alone;
}

bool MustFail(void* caller) {
  if (!is_armed.load(std::memory_order_relaxed)) return false;
  const auto place = reinterpret_cast<std::uintptr_t>(caller);
  if (place < program.begin || place >= program.end) return false;
  static thread_local std::uint64_t state = reinterpret_cast<std::uintptr_t>(&state) | 1;
  state ^= state << 13;  // xorshift
  state ^= state >> 7;
  state ^= state << 17;
  if (state % program.one_in != 0 || !IsProgramsAlone()) return false;
  ++num_failed;
  return true;
}

void* Allocate(std::size_t size, void* caller) {
  void* memory = MustFail(caller) ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return Allocate(size, __builtin_return_address(0)); }
void* operator new[](std::size_t size) { return Allocate(size, __builtin_return_address(0)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
