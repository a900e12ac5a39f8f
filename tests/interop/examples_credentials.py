"""Examples by TLS with a token, against a server that takes no call without one."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import unittest

import examples_attend
import harness

HERE = pathlib.Path(__file__).resolve().parent
TLS = HERE.parent / "fixtures/tls"
TCNATIVE = pathlib.Path("/usr/lib", platform.machine() + "-linux-gnu", "jni/libnetty-tcnative.so")
CROSS_ATTENTION = HERE.parents[1] / "client/examples/python/cross_attention.py"


class CredentialsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        made = examples_attend.run(os.environ["ATTENTION_SERVER"], "--new-token=acme")
        token, line = made.splitlines()
        cls.token_file = folder / "token"
        cls.token_file.write_text(token + "\n")
        (folder / "tokens").write_text(line + "\n")
        cls.wrong_token_file = folder / "wrong"
        cls.wrong_token_file.write_text("guess\n")
        by_tls = f"localhost:0?tls-cert={TLS / 'server.pem'}&tls-key={TLS / 'server.key'}"
        cls.server = cls.enterClassContext(
            harness.ServerProcess(
                f"--auth-tokens={folder / 'tokens'}", listen=f"127.0.0.1:0,{by_tls}"
            )
        )

    def run_program(self, address, token_file, *more):
        command = [sys.executable, str(CROSS_ATTENTION), "--target", address, *more]
        if token_file is not None:
            command += ["--token-file", str(token_file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def by_tls(self, token_file):
        address = self.server.addresses[1]
        return self.run_program(address, token_file, "--tls-ca", str(TLS / "server.pem"))

    def test_by_tls(self):
        result = self.by_tls(self.token_file)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_on_this_host_without_tls(self):
        result = self.run_program(self.server.address, self.token_file)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_a_wrong_token_or_none_is_refused(self):
        for token_file in (self.wrong_token_file, None):
            result = self.by_tls(token_file)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("UNAUTHENTICATED", result.stderr)

    def test_java(self):
        classes = examples_attend.java_classes(self)
        if not TCNATIVE.exists():
            self.skipTest("no libnetty-tcnative.so, install libnetty-tcnative-java")
        # Netty looks for another name than Debian's, and takes no link: client/examples/java/README.md.
        libraries = self.enterContext(tempfile.TemporaryDirectory())
        shutil.copy(TCNATIVE, pathlib.Path(libraries, "libnetty_tcnative.so"))
        arguments = [self.server.addresses[1], str(TLS / "server.pem"), str(self.token_file)]
        printed = examples_attend.run(
            "java", f"-Djava.library.path={libraries}", "-cp", classes, "Attend", *arguments
        )
        examples_attend.check(self, printed)


if __name__ == "__main__":
    unittest.main()
