#include "server/wire/json_lines.h"

#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;

// Characters of a text, which count the lines that were passed.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, int* line) : at_(at), line_(line) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    if (*at_++ == '\n') ++*line_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  int* line_;
};

// Follows the parser through the document and notes where it meets which key.
class PathRecorder {
 public:
  PathRecorder(const int* line, std::map<std::string, int>* lines) : line_(line), lines_(lines) {}

  void OnEvent(Json::parse_event_t event, const Json& parsed) {
    using Event = Json::parse_event_t;
    switch (event) {
      case Event::key:
        levels_.back().key = parsed.get<std::string>();
        Note();
        break;
      case Event::object_start:
      case Event::array_start:
        EnterElement();
        if (event == Event::object_start && !levels_.empty() && levels_.back().is_array) Note();
        levels_.push_back({event == Event::array_start, -1, ""});
        break;
      case Event::object_end:
      case Event::array_end:
        levels_.pop_back();
        break;
      case Event::value:
        EnterElement();
        break;
    }
  }

  const std::string& repeated() const { return repeated_; }  // the first path met twice
  int repeated_line() const { return repeated_line_; }

 private:
  struct Level {
    bool is_array;
    int index;
    std::string key;
  };

  void EnterElement() {
    if (!levels_.empty() && levels_.back().is_array) ++levels_.back().index;
  }

  void Note() {
    std::string path;
    for (const Level& level : levels_) {
      if (level.is_array) {
        absl::StrAppend(&path, "[", level.index, "]");
      } else {
        absl::StrAppend(&path, path.empty() ? "" : ".", level.key);
      }
    }
    const bool is_new = lines_->emplace(path, *line_).second;
    if (is_new || !repeated_.empty()) return;
    repeated_ = path;
    repeated_line_ = *line_;
  }

  const int* line_;
  std::map<std::string, int>* lines_;
  std::vector<Level> levels_;
  std::string repeated_;
  int repeated_line_ = 0;
};

}  // namespace

absl::StatusOr<JsonLines> JsonLines::Parse(const std::string& name, const std::string& text) {
  JsonLines json;
  json.name_ = name;
  int line = 1;
  PathRecorder recorder(&line, &json.lines_);
  const CountingIterator begin(text.data(), &line);
  const CountingIterator end(text.data() + text.size(), &line);
  try {
    json.root_ = Json::parse(begin, end, [&](int, Json::parse_event_t event, Json& parsed) {
      recorder.OnEvent(event, parsed);
      return true;
    });
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ":", line, ": expected JSON: ", error.what()));
  }
  if (recorder.repeated().empty()) return json;
  return absl::InvalidArgumentError(absl::StrCat(name, ":", recorder.repeated_line(), ": ",
                                                 recorder.repeated(),
                                                 " is there twice, expected once"));
}

absl::Status JsonLines::Invalid(const std::string& path, const std::string& message) const {
  int line = 1;
  for (std::string known = path; !known.empty();) {
    if (const auto found = lines_.find(known); found != lines_.end()) {
      line = found->second;
      break;
    }
    const std::size_t end = known.find_last_of(".[");
    known.resize(end == std::string::npos ? 0 : end);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name_, ":", line, ": ", path, path.empty() ? "" : " ", message));
}

}  // namespace attention::server
