// The streams on which sessions leave and come: ExportSession and ImportSession.
#pragma once

#include <memory>

#include "server/rpc/pipelined_stream.h"

namespace attention::server {

std::shared_ptr<PipelinedStream> MakeExportStream(const StreamMethod& method);
std::shared_ptr<PipelinedStream> MakeImportStream(const StreamMethod& method);

}  // namespace attention::server
