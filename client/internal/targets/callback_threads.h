// The threads on which gRPC runs callbacks.
#pragma once

namespace attention::client::internal {

// Keeps the threads for the rest of the process; to be called before any call in gRPC's callback
// form. A program that uses the SDK's plain forms alone thus has none of these threads.
//
// gRPC (1.51) shares one set of them among all channels and ends it with the last channel, whose
// destructor joins them. A call in flight may be the only holder of the last channel, and its
// callback then releases it on one of these threads: the thread would join itself, go on, and free
// what it runs on. With the threads kept, a channel may be destroyed anywhere.
void KeepCallbackThreads();

}  // namespace attention::client::internal
