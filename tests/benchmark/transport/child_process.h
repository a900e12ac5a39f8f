// A server in a process of its own, as in use: the client's threads and memory are not the
// server's.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace attention::bench {

// The resources that a process has used since its start.
struct ProcessUse {
  double cpu_seconds = 0;
  double minor_faults = 0;
};

class ChildProcess {
 public:
  // `environment`: "NAME=value", added to this process's. The child's standard input ends, and
  // SIGTERM reaches it, when this object goes; it gets SIGKILL when this process dies. Exits with a
  // message when the program cannot be started.
  ChildProcess(const std::vector<std::string>& command,
               const std::vector<std::string>& environment);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;

  // The next line of its standard output; empty when it has ended.
  std::string ReadLine();
  ProcessUse Use() const;
  bool IsRunning() const;

 private:
  pid_t pid_ = -1;
  int input_ = -1;
  int output_ = -1;
};

// The path of this program's own file.
std::string OwnPath();

// A folder for sockets that is removed, with what is in it, at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace attention::bench
