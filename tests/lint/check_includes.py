#!/usr/bin/env python3
"""Holds the table of who may include whom, which ARCHITECTURE.md shows.

A room is a folder. A file may include files of its own room and of the rooms that ROOMS grants;
LIBRARIES says which rooms may include a third-party library's headers. Prints file:line, the include
and the rule for each violation, and each cycle between rooms; exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import sys

import sources

ANY = "anything"

# Room -> rooms it may include beside itself. Whoever may include kernels/api may include
# kernels/base, on which it stands; server/session takes only the checks from there. kernels/ is two rooms,
# headers and sources, because only the sources may look inside.
ROOMS = {
    "proto": (),
    "proto/codec": ("proto",),
    "proto/transport": (),
    "proto/safetensors": (),
    "kernels/base": (),
    "kernels/api": ("kernels/base",),
    "kernels/reference": ("kernels/api", "kernels/base"),
    "kernels/cpu": ("kernels/api", "kernels/base"),
    "kernels/cuda/contract": ("kernels/api", "kernels/base"),
    "kernels/cuda/device": ("kernels/cuda/contract", "kernels/api", "kernels/base"),
    "kernels/cuda/plan": ("kernels/cuda/device", "kernels/cuda/contract", "kernels/api",
                          "kernels/base"),
    "kernels/cuda/projection": ("kernels/cuda/plan", "kernels/cuda/device", "kernels/cuda/contract",
                                "kernels/api", "kernels/base"),
    "kernels/cuda": ("kernels/cuda/projection", "kernels/cuda/plan", "kernels/cuda/device",
                     "kernels/cuda/contract", "kernels/api", "kernels/base"),
    # Device code: of the API only the element types, and nothing of the host's half.
    "kernels/cuda/kernels/intrinsics": ("kernels/api",),
    "kernels/cuda/kernels/common": ("kernels/cuda/kernels/intrinsics", "kernels/cuda/contract"),
    "kernels/cuda/kernels/generic": ("kernels/cuda/kernels/common",
                                     "kernels/cuda/kernels/intrinsics", "kernels/cuda/contract"),
    "kernels/cuda/kernels/sm90": ("kernels/cuda/kernels/common", "kernels/cuda/kernels/intrinsics",
                                  "kernels/cuda/contract"),
    "kernels/cuda/plugin": ("kernels/cuda", "kernels/cuda/projection", "kernels/cuda/plan",
                            "kernels/cuda/device", "kernels/cuda/contract",
                            "kernels/cuda/kernels/generic", "kernels/cuda/kernels/sm90",
                            "kernels/api", "kernels/base"),
    "kernels": ("kernels/api", "kernels/base"),
    "kernels sources": ("kernels", "kernels/api", "kernels/base", "kernels/reference",
                        "kernels/cpu", "kernels/cuda/plugin"),
    "server/base": (),
    "server/domain": ("kernels/api", "kernels/base", "server/base"),
    "server/cache": ("kernels/api", "kernels/base", "server/domain", "server/base"),
    "server/session": ("server/cache", "server/domain", "server/base", "kernels/base"),
    "server/auth": ("server/base", "kernels/base"),
    "server/listener": ("server/base", "kernels/base"),
    "server/memory": ("kernels/api", "server/domain", "server/base"),
    "server/shared_memory": ("proto", "proto/transport", "server/listener", "server/base"),
    "server/layer": ("kernels/api", "kernels/base", "server/domain", "server/base",
                     "proto/safetensors"),
    "server/scheduler": ("server/domain", "server/base"),
    "server/engine": ("server/scheduler", "server/cache", "server/domain", "kernels/api",
                      "kernels/base", "server/base"),
    "server/wire": ("proto", "proto/codec", "server/layer", "server/memory",
                    "server/shared_memory", "server/domain", "server/base", "kernels/api",
                    "kernels/base"),
    "server/rpc": ("proto", "proto/codec", "proto/transport", "server/auth", "server/wire", "server/memory",
                   "server/session", "server/shared_memory", "server/layer", "server/scheduler",
                   "server/listener", "server/domain", "server/base", "kernels/api",
                   "kernels/base"),
    "server/config": ("server/auth", "server/listener", "server/domain", "server/base"),
    "server/observe": ("server/listener", "server/base"),
    "server": ANY,
    # The public headers, which are included as they are installed: "attention/client/...".
    "client/include": (),
    "client": ("client/include", "client/internal/base", "client/internal/call", "client/internal/connection",
               "client/internal/convert"),
    "client/internal/base": ("client/include",),
    "client/internal/credentials": ("client/include", "client/internal/base"),
    "client/internal/targets": ("client/include", "client/internal/credentials"),
    "client/internal/convert": ("proto", "proto/codec", "proto/safetensors", "client/include", "client/internal/base"),
    "client/internal/call": ("proto", "proto/codec", "client/include", "client/internal/convert",
                             "client/internal/credentials", "client/internal/targets"),
    "client/internal/shared_memory": ("proto", "proto/codec", "proto/transport", "client/include", "client/internal/base",
                                      "client/internal/call", "client/internal/convert"),
    "client/internal/stream": ("proto", "proto/codec", "client/include", "client/internal/base", "client/internal/call",
                               "client/internal/convert", "client/internal/shared_memory", "client/internal/targets"),
    "client/internal/connection": ("proto", "proto/codec", "client/include", "client/internal/base",
                                   "client/internal/call", "client/internal/convert",
                                   "client/internal/credentials",
                                   "client/internal/shared_memory", "client/internal/stream"),
    "client/flags": ("client/include",),
    "client/loadgen": ("client/include", "client/flags", "kernels/reference", "kernels/api", "kernels/base"),
    # The kernels: to compare a program on remote attention with the same one on local attention.
    "client/examples": ("client/include", "client/flags", "kernels", "kernels/api", "kernels/base"),
    "tests": ANY,
}

# The rooms of the SDK that speak gRPC and protobuf.
SDK_ROOMS = tuple(room for room in ROOMS
                  if room.startswith("client/internal/") and room != "client/internal/base")

# (what, pattern of the header, rooms or files that may include it). Tests may include anything.
LIBRARIES = (
    ("gRPC", r"(grpc|grpcpp)/(?!support/(slice|byte_buffer)\.h)|.*\.grpc\.pb\.h$",
     ("proto", "proto/codec", "proto/transport", "server/rpc", *SDK_ROOMS)),
    ("protobuf and gRPC's buffers",
     r"grpcpp/support/|google/(protobuf(?!/util)|rpc)/|(attention|grpc/health|grpc/reflection)/v\d+/.*\.pb\.h$",
     ("proto", "proto/codec", "proto/transport", "server/wire", "server/shared_memory",
      "server/rpc", *SDK_ROOMS)),
    ("Prometheus' messages", r"io/prometheus/client/.*\.pb\.h$", ("proto", "server/observe")),
    ("protobuf's own JSON and delimited messages", r"google/protobuf/util/",
     ("proto", "server/observe", "server/wire", "client/internal/stream")),
    ("Highway", r"hwy/", ("kernels/cpu",)),
    ("oneDNN", r"oneapi/", ("kernels/cpu", "client/examples")),
    ("logging, metrics and HTTP libraries", r"(spdlog|prometheus)/|microhttpd\.h$",
     ("server/observe", "server")),
    ("the flags library", r"CLI/", ("server/config", "client/flags", "client/loadgen", "client/examples")),
    ("the TOML library", r"toml\+\+/", ("server/config", "server/auth")),
    ("the JSON Web Token library", r"cjose/", ("server/auth",)),
    ("the hash of rows and archives", r"xxhash\.h$", ("server/domain", "server/wire")),
    ("the JSON library", r"nlohmann/",
     ("proto/safetensors", "server/auth", "server/wire", "server/rpc", "server/config", "server/observe",
      "server/port_file.cc", "client/loadgen", "client/examples")),
    ("Abseil", r"absl/",
     tuple(room for room in ROOMS if room not in ("kernels/base", "tests"))),
    ("OpenSSL", r"openssl/", ("server/auth", "server/layer", "server/listener", "server/rpc",
                              "client/internal/credentials", "client/internal/targets")),
    ("CUDA", r"(cuda|cublas|cudnn|nccl|nvrtc|cooperative_groups|cub/|thrust/|cute/)",
     ("kernels/cuda/plugin", "kernels/cuda/kernels/intrinsics", "kernels/cuda/kernels/common",
      "kernels/cuda/kernels/generic", "kernels/cuda/kernels/sm90")),
)

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
SPLIT_ROOMS = ("kernels",)


def room_of(path):
    """The room of a file or of an included header; None for what is none of ours."""
    parts = path.split("/")
    if path.startswith("attention/v"):
        return "proto"
    if path.startswith("attention/client/"):
        return "client/include"
    for length in range(len(parts) - 1, 0, -1):
        room = "/".join(parts[:length])
        if room not in ROOMS:
            continue
        is_direct = length == len(parts) - 1
        if room in SPLIT_ROOMS:
            if not is_direct:
                return room + "/" + parts[length]  # a room that the table does not know
            return room + " sources" if path.endswith(".cc") else room
        if room in ("client", "server", "kernels/cuda") and not is_direct:
            return room + "/" + parts[length]
        return room
    return None


def includes_of(text):
    """Pairs (line number, header) of a source text; the form of the quotes does not matter."""
    for number, line in enumerate(text.splitlines(), start=1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(2)


def path_rule(header):
    if header.startswith("/"):
        return "an absolute path: it exists on one machine only"
    if ".." in header.split("/") or header.startswith("./"):
        return "a relative path: name the header from the repository's root"
    return None


def room_rule(source_room, header, own_folder_files):
    if header in own_folder_files:
        return f"no room: write \"{own_folder_files[header]}\""
    header_room = room_of(header)
    if header_room is None or header_room == source_room:
        return None
    allowed = ROOMS.get(source_room)
    if allowed is None:
        return f"the room {source_room} is not in the table of tests/lint/check_includes.py"
    if allowed == ANY or header_room in allowed:
        return None
    names = ", ".join(allowed) or "no other room"
    return f"{source_room} may include {names}; not {header_room}"


def library_rule(path, source_room, header):
    if source_room == "tests":
        return None
    for what, pattern, allowed in LIBRARIES:
        if re.match(pattern, header) and source_room not in allowed and path not in allowed:
            return f"{what}: only in {', '.join(allowed)}"
    return None


def check_file(path, text, siblings):
    """Yields (message, edge) for each include; message or edge is None where there is none."""
    source_room = room_of(path)
    if source_room is None:
        return
    for number, header in includes_of(text):
        rule = (path_rule(header) or room_rule(source_room, header, siblings)
                or library_rule(path, source_room, header))
        message = f"{path}:{number}: includes \"{header}\": {rule}" if rule else None
        header_room = room_of(header)
        is_edge = header_room not in (None, source_room) and source_room != "tests"
        yield message, (source_room, header_room) if is_edge else None


def check_table(names):
    """A message for each room of the table that is no folder."""
    folders = {name.rsplit("/", 1)[0] for name in names if "/" in name}
    parents = {"/".join(parts[:count]) for parts in (folder.split("/") for folder in folders)
               for count in range(1, len(parts) + 1)}
    return [f"tests/lint/check_includes.py: the table has a room {room}, which is no folder"
            for room in ROOMS if room.split()[0] not in parents]


def find_cycle(edges):
    """One cycle as a list of rooms that ends where it starts, or None."""
    graph = {}
    for source, target in edges:
        graph.setdefault(source, set()).add(target)
    done, trail = set(), []

    def visit(room):
        if room in trail:
            return trail[trail.index(room):] + [room]
        if room in done:
            return None
        trail.append(room)
        for target in sorted(graph.get(room, ())):
            cycle = visit(target)
            if cycle:
                return cycle
        trail.pop()
        done.add(room)
        return None

    for room in sorted(graph):
        cycle = visit(room)
        if cycle:
            return cycle
    return None


def check_tree(root):
    """All messages for the tree under root."""
    names = sources.cxx_files(root)
    messages, edges = [], set()
    for name in names:
        folder = name.rsplit("/", 1)[0] if "/" in name else ""
        siblings = {other[len(folder) + 1:]: other for other in names
                    if folder and other.startswith(folder + "/")}
        text = (pathlib.Path(root) / name).read_text(encoding="utf-8", errors="replace")
        for message, edge in check_file(name, text, siblings):
            if message:
                messages.append(message)
            if edge:
                edges.add(edge)
    cycle = find_cycle(edges)
    if cycle:
        messages.append("cycle between rooms: " + " -> ".join(cycle))
    return messages


def resolve(room, name):
    """The room that a name in the row of `room` means: a neighbour, of it or of a folder above, or a whole name."""
    folders = room.split()[0].split("/")
    for length in range(len(folders) - 1, 0, -1):
        candidate = "/".join(folders[:length] + [name])
        if candidate in ROOMS and candidate != room:
            return candidate
    return name


def check_page(text):
    """Each row of ARCHITECTURE.md's table that differs from ROOMS."""
    shown = {}
    for name, granted in re.findall(r"^\| `([\w/*.]+)` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE):
        room = {"kernels/*.h": "kernels", "kernels/*.cc": "kernels sources"}.get(name, name.rstrip("/"))
        shown[room] = ANY if granted == ANY else {resolve(room, word) for word in re.findall(r"`([\w/]+)`", granted)}
    rules = {room: granted if granted == ANY else set(granted) for room, granted in ROOMS.items()}
    return [f"ARCHITECTURE.md: the row of {room} says {shown.get(room, 'nothing')}, the table of check_includes.py "
            f"{rules.get(room, 'nothing')}" for room in sorted(rules.keys() | shown.keys())
            if shown.get(room) != rules.get(room)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    root = parser.parse_args().root
    messages = [*check_tree(root), *check_table(sources.files(root)),
                *check_page((root / "ARCHITECTURE.md").read_text())]
    for message in messages:
        print(message)
    if messages:
        print(f"{len(messages)} breaches of the rules")
        return 1
    print(f"includes of {len(sources.cxx_files(root))} files follow the table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
