// Ctrl-C (SIGINT) and SIGTERM end the run early but properly; a second one ends the program at
// once.
#pragma once

namespace attention::loadgen {

void CatchInterrupts();
bool IsInterrupted();

}  // namespace attention::loadgen
