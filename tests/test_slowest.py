"""The table of tests/slowest.py, from the files that ninja and ctest leave behind."""

import pathlib
import tempfile
import unittest

import slowest


class SlowestTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = pathlib.Path(folder.name) / "release"
        self.build.mkdir()

    def ninja_log(self, *entries):
        """Entries are (start, end, output); each output exists."""
        lines = ["# ninja log v5"]
        for start, end, output in entries:
            lines.append(f"{start}\t{end}\t0\t{output}\tabc")
            (self.build / output).parent.mkdir(parents=True, exist_ok=True)
            (self.build / output).touch()
        log = self.build / ".ninja_log"
        log.write_text("\n".join(lines) + "\n")
        return log

    def junit(self, *cases):
        file = self.build / "Unit tests.xml"
        body = "".join(f'<testcase name="{name}" time="{time}"/>' for name, time in cases)
        file.write_text(f"<testsuite>{body}</testsuite>")
        return file

    def test_units_are_sorted_and_named_by_build_target_and_source(self):
        log = self.ninja_log((0, 1500, "kernels/CMakeFiles/kernels_cpu.dir/cpu/plan.cc.o"),
                             (100, 28100, "tests/CMakeFiles/x_test.dir/x_test.cc.o"))
        self.assertEqual(slowest.report([log], 20)[-2:],
                         ["     28.0  release: tests x_test x_test.cc",
                          "      1.5  release: kernels kernels_cpu cpu/plan.cc"])

    def test_the_last_compilation_counts(self):
        name = "a/CMakeFiles/a.dir/a.cc.o"
        log = self.ninja_log((0, 9000, name), (0, 2000, name))
        self.assertEqual(slowest.report([log], 20)[-1], "      2.0  release: a a a.cc")

    def test_an_output_that_is_gone_does_not_count(self):
        log = self.ninja_log((0, 9000, "a/CMakeFiles/a.dir/a.cc.o"), (0, 1000, "a/CMakeFiles/a.dir/b.cc.o"))
        (self.build / "a/CMakeFiles/a.dir/a.cc.o").unlink()
        self.assertEqual(slowest.report([log], 20)[0],
                         "release: 1 translation units 1 s, links and the rest 0 s")

    def test_links_are_summed_apart(self):
        log = self.ninja_log((0, 2000, "a/CMakeFiles/a.dir/a.cc.o"), (2000, 5000, "bin/a"))
        self.assertEqual(slowest.report([log], 20)[0],
                         "release: 1 translation units 2 s, links and the rest 3 s")

    def test_tests_are_sorted_and_named_by_their_stage(self):
        file = self.junit(("fast_test", "0.25"), ("slow_test", "61.04"))
        self.assertEqual(slowest.report([file], 20),
                         ["slowest tests, in seconds:", "     61.0  Unit tests: slow_test",
                          "      0.2  Unit tests: fast_test"])

    def test_no_more_rows_than_asked_for(self):
        file = self.junit(*[(f"test_{i}", str(i)) for i in range(30)])
        self.assertEqual(len(slowest.report([file], 3)), 4)


if __name__ == "__main__":
    unittest.main()
