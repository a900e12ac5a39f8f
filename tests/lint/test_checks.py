"""Each rule of the checks can fail: a tree that breaks it, and the message that names it."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import check_comments
import check_commits
import check_duplicates
import check_includes
import check_markdown
import check_quotes
import check_readme
import check_sizes
import check_strings


class Tree(unittest.TestCase):
    """A temporary tree of files; not a git repository, so every file counts."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.root = self.folder / "tree"
        self.root.mkdir()

    def start_over(self):
        self.root = pathlib.Path(tempfile.mkdtemp(dir=self.folder))

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def assert_one(self, messages, *fragments):
        self.assertEqual(len(messages), 1, messages)
        for fragment in fragments:
            self.assertIn(fragment, messages[0])


class IncludesTest(Tree):
    def check(self, path, *headers, marks='""'):
        lines = [f"#include {marks[0]}{header}{marks[1]}" for header in headers]
        self.write(path, "\n".join(["// a comment", *lines, ""]))
        return check_includes.check_tree(self.root)

    def test_every_granted_include_passes(self):
        for room, allowed in check_includes.ROOMS.items():
            if allowed == check_includes.ANY or room in ("proto", "kernels", "client"):
                continue
            self.start_over()
            folder, suffix = (room.split()[0], ".cc") if " " in room else (room, ".h")
            headers = ["attention/v1/tensor.pb.h" if other == "proto" else other + "/x.h"
                       for other in (*allowed, folder)]
            self.assertEqual(self.check(f"{folder}/y{suffix}", *headers), [], room)

    def test_every_include_not_granted_fails(self):
        headers = {room: room + "/x.h" for room in check_includes.ROOMS
                   if " " not in room and room not in ("proto", "tests")}
        for room, allowed in check_includes.ROOMS.items():
            if allowed == check_includes.ANY or " " in room or room == "proto":
                continue
            for other, header in headers.items():
                if other == room or other in allowed:
                    continue
                with self.subTest(room=room, other=other):
                    found = check_includes.check_file(f"{room}/y.h", f'//\n#include "{header}"\n', {})
                    self.assert_one([message for message, _ in found], f"{room}/y.h:2:", header,
                                    f"{room} may include")

    def test_public_client_header_may_not_look_inside(self):
        self.assert_one(self.check("client/include/attention/client/session.h", "client/internal/call/x.h"),
                        "client/include/attention/client/session.h:2", "not client/internal")

    def test_public_client_header_is_included_as_it_is_installed(self):
        self.assertEqual(self.check("client/loadgen/x.cc", "attention/client/session.h"), [])
        self.assert_one(self.check("server/rpc/x.cc", "attention/client/session.h"),
                        "not client/include")

    def test_client_source_may_look_inside(self):
        self.assertEqual(self.check("client/session.cc", "client/internal/call/x.h"), [])

    def test_wiring_may_include_everything(self):
        self.assertEqual(
            self.check("server/server_app.cc", "server/rpc/x.h", "kernels/registry.h"), [])

    def test_nothing_includes_the_wiring(self):
        self.assert_one(self.check("server/engine/x.cc", "server/server_app.h"), "not server")

    def test_unknown_room(self):
        self.assert_one(self.check("server/attic/x.cc", "server/base/x.h"),
                        "server/attic is not in the table")

    def test_absolute_path(self):
        self.assert_one(self.check("server/base/x.cc", "/opt/x.h"), "an absolute path")

    def test_relative_path(self):
        self.assert_one(self.check("server/base/x.cc", "../cache/x.h"), "a relative path")

    def test_path_without_room(self):
        self.write("server/base/clock.h", "")
        self.assert_one(self.check("server/base/x.cc", "clock.h"), 'write "server/base/clock.h"')

    def test_libraries_outside_their_rooms(self):
        cases = {
            "grpcpp/grpcpp.h": "gRPC", "grpc/grpc.h": "gRPC",
            "google/protobuf/message.h": "protobuf", "hwy/highway.h": "Highway",
            "spdlog/spdlog.h": "logging", "prometheus/counter.h": "logging",
            "microhttpd.h": "logging", "CLI/CLI.hpp": "flags", "nlohmann/json.hpp": "JSON",
            "cuda_runtime.h": "CUDA",
        }
        for header, what in cases.items():
            for room in ("server/scheduler", "client", "kernels/api"):
                with self.subTest(header=header, room=room):
                    self.start_over()
                    self.assert_one(self.check(f"{room}/x.h", header, marks="<>"), what, ":2:")

    def test_generated_message_outside_the_wire(self):
        messages = self.check("server/engine/x.cc", "attention/v1/tensor.pb.h")
        self.assert_one(messages, "server/engine may include", "not proto")

    def test_generated_message_in_a_public_header(self):
        self.assert_one(self.check("client/include/attention/client/x.h", "attention/v1/tensor.pb.h"), "not proto")

    def test_libraries_in_their_rooms(self):
        self.assertEqual(self.check("server/rpc/x.cc", "grpcpp/grpcpp.h"), [])
        self.assertEqual(self.check("kernels/cpu/x.cc", "hwy/highway.h"), [])
        self.assertEqual(self.check("server/main.cc", "spdlog/spdlog.h"), [])

    def test_abseil_in_the_lowest_room(self):
        self.assert_one(self.check("kernels/base/x.h", "absl/status/status.h"), "Abseil")

    def test_tests_may_include_anything(self):
        self.assertEqual(self.check("tests/unit/x.cc", "server/rpc/x.h", "hwy/highway.h"), [])

    def test_cycle(self):
        self.write("kernels/base/x.h", '#include "kernels/api/x.h"\n')
        messages = self.check("kernels/api/x.h", "kernels/base/x.h")
        self.assertEqual(len(messages), 2)
        self.assertIn("cycle between rooms: kernels/api -> kernels/base -> kernels/api", messages[1])

    def test_room_without_a_folder(self):
        names = [f"{room.split()[0]}/x.h" for room in check_includes.ROOMS if room != "server/engine"]
        self.assert_one(check_includes.check_table(names), "a room server/engine", "no folder")

    def test_room_that_holds_only_folders(self):
        names = [f"{room.split()[0]}/deeper/x.h" for room in check_includes.ROOMS]
        self.assertEqual(check_includes.check_table(names), [])

    def test_page_shows_the_table(self):
        page = (check_includes.sources.repository_root() / "ARCHITECTURE.md").read_text()
        self.assertEqual(check_includes.check_page(page), [])
        row = "| `server/session/` |"
        self.assert_one(check_includes.check_page(page.replace(row, "| session |")), "server/session", "says nothing")
        self.assert_one(check_includes.check_page(page + "| `server/attic/` | ghosts | `base` |\n"), "server/attic")

    def test_table_has_no_cycle(self):
        edges = [(room, other) for room, allowed in check_includes.ROOMS.items()
                 if allowed != check_includes.ANY for other in allowed]
        self.assertIsNone(check_includes.find_cycle(edges))


class PagesTest(Tree):
    def check(self, *lines):
        self.write("tools/thing.sh", "case --fast")
        self.write("samples.py", "# [one]\n  print(1)\n# [end]\n")
        self.write("README.md", "".join(f"{line}\n" for line in lines))
        return check_readme.check_tree(self.root)

    def test_block_of_which_nothing_is_said(self):
        for language in ("cpp", "sh", "json", ""):
            self.assert_one(self.check("A", "", f"```{language}", "x", "```"), "README.md:3", "nothing says")

    def test_indented_block(self):
        self.assert_one(self.check("A", "", "    tools/thing.sh"), "README.md:2", "fence it")

    def test_figures_and_continued_lists_are_free(self):
        self.assertEqual(self.check("```text", "+--+", "```", "", "- one", "", "    more of one"), [])

    def test_sample_that_differs(self):
        block = ["<!-- sample: samples.py one -->", "```python", "print(1)", "```"]
        self.assertEqual(self.check(*block), [])
        self.assert_one(self.check(*block[:2], "print(2)", "```"), "README.md:2", "samples.py [one]")
        self.assert_one(self.check("<!-- sample: samples.py two -->", *block[1:]), "0 regions named two")

    def test_command_that_no_script_runs(self):
        self.write("run.sh", "tools/thing.sh --fast \\\n  x\n")
        block = ["<!-- run by: run.sh -->", "```sh", "tools/thing.sh --fast x  # quick", "```"]
        self.assertEqual(self.check(*block), [])
        self.assert_one(self.check(*block[:2], "tools/thing.sh", "tools/thing.sh y", "```"), "`tools/thing.sh y`")

    def test_setting_that_is_not_there(self):
        self.assert_one(self.check("<!-- run: moon -->", "```sh", "ls", "```"), "moon")

    def test_files_and_flags_of_commands(self):
        def say(command):
            return self.check("<!-- not run: it is slow -->", "```sh", command, "```")

        self.assertEqual(say("tools/thing.sh --fast build/x.json"), [])
        self.assert_one(say("tools/thing.sh --slow"), "knows no --slow")
        self.assert_one(say("cat tools/none.sh"), "there is no tools/none.sh")


class MarkdownTest(Tree):
    def check(self, text):
        self.write("docs/page.md", text)
        return check_markdown.check_tree(self.root)

    def test_long_line(self):
        self.assertEqual(self.check("x" * 140 + "\n"), [])
        self.assert_one(self.check("\n" + "x" * 141 + "\n"), "docs/page.md:2: 141 wide", "at most 140")

    def test_long_row(self):
        self.assertEqual(self.check("|" + "x" * 239 + "\n"), [])
        self.assert_one(self.check("|" + "x" * 240 + "\n"), "241 wide", "at most 240")

    def test_link_to_nothing(self):
        self.write("README.md", "# A `name`, and more\n")
        self.assertEqual(self.check("[a](../README.md#a-name-and-more) [b](https://example.org/x) [c](../docs)"), [])
        self.assert_one(self.check("[a](README.md)"), "docs/page.md", "there is no docs/README.md")
        self.assert_one(self.check("[a](../README.md#other)"), "README.md has no heading #other")


class CommitsTest(Tree):
    def git(self, *words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(self.root), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, subject):
        self.git("commit", "-q", "--allow-empty", "-m", subject)
        return self.git("rev-parse", "HEAD")

    def test_subjects_after_the_base(self):
        self.git("init", "-q")
        base = self.commit("Whatever came before")
        self.commit("kernels/cpu: " + "x" * 64)
        self.assertEqual(check_commits.check_history(self.root, base), [])
        self.commit("Change something")
        self.assert_one(check_commits.check_history(self.root, base), "Change something: expected")
        later = self.git("rev-parse", "HEAD")
        self.commit("kernels/cpu: " + "x" * 65)
        self.assert_one(check_commits.check_history(self.root, later), "at most 64")

    def test_no_history(self):
        self.assertFalse(check_commits.has_history(self.root, "0" * 40))
        self.git("init", "-q")
        base = self.commit("docs: begin")
        self.assertTrue(check_commits.has_history(self.root, base))
        self.assertFalse(check_commits.has_history(self.root, "0" * 40))


class StringsTest(Tree):
    def check(self, text, hosts=()):
        self.write("README.md", text)
        return check_strings.check_tree(self.root, hosts)

    def test_folder_of_one_person(self):
        for folder in ("home", "root", "work", "Users"):
            self.assert_one(self.check(f"fine\ncd /{folder}/somebody\n"), "README.md:2")

    def test_private_address(self):
        self.assert_one(self.check("10." + "1.2.3"), "README.md:1")

    def test_mirror_of_this_machine(self):
        self.assert_one(self.check("http://mirror.example/debian", ["mirror.example"]),
                        "mirror.example")

    def test_what_is_true_everywhere(self):
        self.assertEqual(self.check("127.0.0.1 0.0.0.0 /usr/local/bin $ROOT/work/x 192.0.2.1"), [])


class QuotesTest(Tree):
    def check(self, line, path="server/rpc/x.cc"):
        self.start_over()
        self.write(path, f"// it's a comment, and 'so' is this\n{line}\n")
        return check_quotes.check_tree(self.root)

    def test_a_value_between_quotes_of_a_literal(self):
        for line in ("""StrCat("id is '", id, "', expected another")""",
                     """StrCat("id is '",""",
                     """text = "is '" + text;""",
                     """absl::StrCat("the worker '"\n, worker)""",
                     """StrCat("'", id, "'")"""):
            self.assertGreaterEqual(len(self.check(line)), 1, line)

    def test_what_goes_through_the_helper_is_fine(self):
        for line in ("""StrCat("id is ", Quoted(id), ", expected 'a' or 'b'")""",
                     """constexpr char kQuote = '"';"""):
            self.assertEqual(self.check(line), [], line)

    def test_flags_are_the_operator_s(self):
        self.assertEqual(self.check("""return "is '" + text;""", "server/config/x.cc"), [])


class CommentsTest(Tree):
    def check(self, text, path="server/base/x.h"):
        self.start_over()
        self.write(path, text)
        return check_comments.check_tree(self.root)

    def test_an_opening_without_a_subject(self):
        for opening, hint in check_comments.HINTS.items():
            for mark in ("//", "  //", "///", "/*", "/**"):
                text = f"int a;\n{mark} {opening} it holds.\n"
                self.assert_one(self.check(text), f'server/base/x.h:2: a comment opens with "{opening}"', hint)

    def test_every_kind_of_source(self):
        for suffix in (".h", ".cc", ".cu", ".cuh", ".inc"):
            self.assert_one(self.check("// What it holds.\n", "kernels/x" + suffix), f"x{suffix}:1")
        self.assertEqual(self.check("// What it holds.\n", "docs/x.md"), [])

    def test_each_comment_of_a_file(self):
        self.assertEqual(len(self.check("// Of a.\nint a;\n// Of b.\n\n// Of c.\n")), 3)

    def test_only_the_first_line_of_a_comment(self):
        self.assertEqual(self.check("// The bytes of a row.\n// What they hold.\n//\n// Of all.\n"), [])

    def test_other_words_are_fine(self):
        for text in ("// Whole rows.", "// Office hours.", "// Whose turn it is.", "// Null: none.",
                     "// The bytes, whether or not they are used.", "int a;  // of the row",
                     'text = "What is it?";', "What(a);"):
            self.assertEqual(self.check(text + "\n"), [], text)


class SizesTest(Tree):
    def setUp(self):
        super().setUp()
        try:
            subprocess.run(["ctags", "--version"], check=True, capture_output=True)
        except OSError:
            self.skipTest("universal-ctags is not installed")

    @staticmethod
    def function(lines):
        return "void Run() {\n" + "  Step();\n" * (lines - 2) + "}\n"

    def test_long_file(self):
        self.write("server/base/x.h", "//\n" * 501)
        self.assert_one(check_sizes.check_tree(self.root), "server/base/x.h:1: 501 lines")

    def test_long_function(self):
        self.write("server/base/x.cc", self.function(71))
        self.assert_one(check_sizes.check_tree(self.root), "Run has 71 lines", "at most 70")

    def test_long_kernel(self):
        self.write("kernels/cpu/x.cc", self.function(151))
        self.assert_one(check_sizes.check_tree(self.root), "Run has 151 lines", "at most 150")

    def test_long_class(self):
        self.write("server/base/x.h", "class Table {\n" + "  int a;\n" * 199 + "};\n")
        self.assert_one(check_sizes.check_tree(self.root), "Table has 201 lines", "at most 200")

    def test_allowance(self):
        self.write("server/base/x.cc", self.function(71))
        allowed = {"server/base/x.cc:Run": "a reason"}
        self.assertEqual(check_sizes.check_tree(self.root, allowed), [])
        self.write("server/base/x.cc", self.function(70))
        self.assert_one(check_sizes.check_tree(self.root, allowed), "allows server/base/x.cc:Run, which is not too long")

    def test_long_local_struct(self):
        self.write("server/base/x.cc", "namespace {\nstruct Table final : Base {\n" + "  int a;\n" * 199 + "};\n}\n")
        self.assert_one(check_sizes.check_tree(self.root), "server/base/x.cc:2: Table has 201 lines")

    def test_at_the_limit(self):
        self.write("server/base/y.h", "class Table {\n" + "  int a;\n" * 198 + "};\n")
        self.write("server/base/x.cc", self.function(70))
        self.write("kernels/cpu/x-inl.h", self.function(150))
        self.assertEqual(check_sizes.check_tree(self.root), [])


class DuplicatesTest(unittest.TestCase):
    LINES = [f"  total += Weight({i});" for i in range(6)]

    def check(self, *texts, allowed=()):
        return check_duplicates.check_texts({f"server/base/{'abc'[i]}.cc": text for i, text in enumerate(texts)},
                                            allowed)

    def test_six_lines_in_two_files(self):
        text = "\n".join(self.LINES)
        self.assertEqual(self.check("int x;\n" + text, text),
                         ["server/base/a.cc:2: 6 lines stand also in server/base/b.cc:1"])

    def test_six_lines_twice_in_one_file(self):
        text = "\n".join(self.LINES)
        self.assertEqual(self.check(text + "\nint x;\n" + text),
                         ["server/base/a.cc:1: 6 lines stand also in server/base/a.cc:8"])

    def test_five_lines(self):
        text = "\n".join(self.LINES[:5])
        self.assertEqual(self.check(text, text), [])

    def test_indentation_comments_and_blank_lines_make_no_difference(self):
        other = "\n\n// why\n".join("    " + line + "  // " + line for line in self.LINES)
        self.assertEqual(len(self.check("\n".join(self.LINES), other)), 1)

    def test_lines_that_are_no_code_of_their_own(self):
        text = '#include "a.h"\n#include "b.h"\nusing a::b;\nnamespace a {\n public:\n  }\n});\n' * 2
        self.assertEqual(self.check(text, text), [])

    def test_a_longer_run_is_one_finding(self):
        text = "\n".join(f"Step({i});" for i in range(20))
        self.assertEqual(self.check(text, text), ["server/base/a.cc:1: 20 lines stand also in server/base/b.cc:1"])

    def test_allowance(self):
        text = "\n".join(self.LINES)
        self.assertEqual(self.check(text, text, allowed=["server/base/b.cc:server/base/a.cc"]), [])

    def test_an_allowance_without_need(self):
        self.assertEqual(self.check("int x;", "int y;", allowed=["server/base/b.cc:server/base/a.cc"]),
                         ["tests/lint/check_duplicates.py: allows server/base/b.cc:server/base/a.cc, which stands "
                          "only once or is gone"])


if __name__ == "__main__":
    unittest.main()
