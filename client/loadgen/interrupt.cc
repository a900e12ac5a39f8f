#include "client/loadgen/interrupt.h"

#include <csignal>

namespace attention::loadgen {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void OnSignal(int signal) {
  interrupted = 1;
  std::signal(signal, SIG_DFL);
}

}  // namespace

void CatchInterrupts() {
  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
}

bool IsInterrupted() { return interrupted != 0; }

}  // namespace attention::loadgen
