"""SFTP's server, as a program: requests on standard input, answers on standard output, one after the other.  Layer L3.

ssh.py starts it for the subsystem `sftp`, by its file and with nothing but the standard library, so it imports nothing
of ours.  One request at a time is what bounds it: a client that does not read answers waits in the pipe.
Version 3 (draft-ietf-secsh-filexfer-02), as all clients speak it, with OpenSSH's extensions (its PROTOCOL file).
"""

import errno
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, Final, TypeAlias

_VERSION: Final = 3
# A packet, and what one of them reads; OpenSSH's server has the same, and clients are told by `limits@openssh.com`.
MAX_PACKET_BYTES: Final = 256 * 1024
_MAX_READ_BYTES: Final = MAX_PACKET_BYTES - 1024
# Files and directories open at once: under the 256 descriptors that some systems begin with.
MAX_HANDLES: Final = 200
_HALF_A_YEAR_SECONDS: Final = 180 * 86400
_NAMES_A_TIME: Final = 100

_INIT, _VERSION_ANSWER = 1, 2
_STATUS, _HANDLE, _DATA, _NAME, _ATTRIBUTES = 101, 102, 103, 104, 105
_EXTENDED, _EXTENDED_ANSWER = 200, 201
_OK, _EOF, _NO_SUCH_FILE, _DENIED, _FAILURE, _BAD_MESSAGE, _UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
_CODES: Final = {
    errno.ENOENT: _NO_SUCH_FILE,
    errno.ENOTDIR: _NO_SUCH_FILE,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOSYS: _UNSUPPORTED,
    errno.ENOTSUP: _UNSUPPORTED,
}
_SIZE, _OWNERS, _MODE, _TIMES, _EXTENSIONS = 1, 2, 4, 8, 0x80000000
_READ, _WRITE, _APPEND, _CREATE, _TRUNCATE, _EXCLUSIVE = 1, 2, 4, 8, 16, 32


class _BadMessage(Exception):
    """A packet that is no request."""


class _Fields:
    """What a packet holds, from its beginning on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise _BadMessage("the packet is too short")
        self._at += size
        return part

    def byte(self) -> int:
        return self._take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def long(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def text(self) -> bytes:
        return self._take(self.number())

    def path(self) -> bytes:
        """One of the agent's; an empty one is where it began."""
        path = self.text()
        if b"\0" in path:
            raise _BadMessage("a path holds a null")
        return path or b"."


class _Attributes:
    """Of a file, in the packet's form; what is None is not said."""

    def __init__(self, fields: _Fields) -> None:
        flags = fields.number()
        self.size = fields.long() if flags & _SIZE else None
        self.owners = (fields.number(), fields.number()) if flags & _OWNERS else None
        self.mode = fields.number() & 0o7777 if flags & _MODE else None
        self.times = (fields.number(), fields.number()) if flags & _TIMES else None
        if flags & _EXTENSIONS:
            for _ in range(min(fields.number(), 64)):
                fields.text(), fields.text()

    def apply(self, target: bytes | int, *, is_followed: bool = True) -> None:
        """To a file, or to a link itself if it is not followed: that has no size and no mode.  Raises OSError."""
        # Of descriptors the system does not want to be asked.
        how: Any = {} if is_followed else {"follow_symlinks": False}
        if self.size is not None and is_followed:
            os.truncate(target, self.size)
        if self.mode is not None and is_followed:
            os.chmod(target, self.mode)
        if self.owners is not None:
            os.chown(target, *self.owners, **how)
        if self.times is not None:
            os.utime(target, self.times, **how)


def _number(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def _text(value: bytes) -> bytes:
    return _number(len(value)) + value


def _attributes(of: os.stat_result) -> bytes:
    flags = _SIZE | _OWNERS | _MODE | _TIMES
    return struct.pack(
        ">IQIIIII",
        flags,
        of.st_size,
        of.st_uid & 0xFFFFFFFF,
        of.st_gid & 0xFFFFFFFF,
        of.st_mode,
        int(of.st_atime) & 0xFFFFFFFF,
        int(of.st_mtime) & 0xFFFFFFFF,
    )


def _long_name(name: bytes, of: os.stat_result) -> bytes:
    """As `ls -l` writes it: clients show it to people."""
    is_recent = abs(time.time() - of.st_mtime) < _HALF_A_YEAR_SECONDS
    when = time.strftime("%b %e %H:%M" if is_recent else "%b %e  %Y", time.localtime(of.st_mtime))
    head = f"{stat.filemode(of.st_mode)} {of.st_nlink:>4} {of.st_uid:<8} {of.st_gid:<8} {of.st_size:>8} {when} "
    return head.encode() + name


def _status(code: int, text: str = "") -> bytes:
    return bytes([_STATUS]) + _number(code) + _text(text.encode()) + _text(b"")


_DONE: Final = _status(_OK)


class Server:
    """One client's; `answer` makes of each packet the one that goes back."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}
        self._folders: dict[bytes, Iterator[os.DirEntry[bytes]]] = {}
        self._next = 0

    def answer(self, packet: bytes) -> bytes:
        """Of the packet's kind, or a status: what it holds raises nothing."""
        fields = _Fields(packet)
        try:
            kind = fields.byte()
            if kind == _INIT:
                return self._greeting()
            number = fields.number()
        except _BadMessage:
            # Without its number nobody can be told which request it was.
            kind, number, fields = 0, 0, _Fields(b"")
        try:
            answer = self._ask(_REQUESTS.get(kind), fields)
        except _BadMessage as error:
            answer = _status(_BAD_MESSAGE, str(error))
        except EOFError:
            answer = _status(_EOF, "end of file")
        except OSError as error:
            answer = _status(_CODES.get(error.errno or 0, _FAILURE), error.strerror or "failure")
        except (OverflowError, ValueError):
            answer = _status(_FAILURE, "a number is out of range")
        return answer[:1] + _number(number) + answer[1:]

    def _ask(self, request: "_Request | None", fields: _Fields) -> bytes:
        if request is None:
            return _status(_UNSUPPORTED, "there is no such request")
        return request(self, fields)

    def _greeting(self) -> bytes:
        offered = b"".join(_text(name) + _text(version) for name, (version, _) in _EXTENDED_REQUESTS.items())
        return bytes([_VERSION_ANSWER]) + _number(_VERSION) + offered

    def _extended(self, fields: _Fields) -> bytes:
        _, request = _EXTENDED_REQUESTS.get(fields.text(), (b"", None))
        return self._ask(request, fields)

    def _new_handle(self) -> bytes:
        """Raises OSError when there are too many."""
        if len(self._files) + len(self._folders) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, "too many files are open: close some")
        self._next += 1
        return _number(self._next)

    def _file(self, fields: _Fields) -> int:
        file = self._files.get(fields.text())
        if file is None:
            raise OSError(errno.EBADF, "there is no such handle")
        return file

    def _open(self, fields: _Fields) -> bytes:
        path, wanted = fields.path(), fields.number()
        attributes = _Attributes(fields)
        handle = self._new_handle()
        flags = _ACCESS[wanted & (_READ | _WRITE)] | os.O_CLOEXEC
        for asked, flag in _OPENING.items():
            flags |= flag if wanted & asked else 0
        self._files[handle] = os.open(path, flags, 0o666 if attributes.mode is None else attributes.mode)
        return bytes([_HANDLE]) + _text(handle)

    def _close(self, fields: _Fields) -> bytes:
        handle = fields.text()
        if self._folders.pop(handle, None) is None:
            file = self._files.pop(handle, None)
            if file is None:
                raise OSError(errno.EBADF, "there is no such handle")
            os.close(file)
        return _DONE

    def _read(self, fields: _Fields) -> bytes:
        file, offset, size = self._file(fields), fields.long(), fields.number()
        data = os.pread(file, min(size, _MAX_READ_BYTES), offset)
        if not data:
            raise EOFError
        return bytes([_DATA]) + _text(data)

    def _write(self, fields: _Fields) -> bytes:
        file, offset, data = self._file(fields), fields.long(), memoryview(fields.text())
        while data:
            # With O_APPEND Linux appends, whatever the offset is: as the client asked for.
            written = os.pwrite(file, data, offset)
            offset += written
            data = data[written:]
        return _DONE

    def _stat(self, fields: _Fields) -> bytes:
        return bytes([_ATTRIBUTES]) + _attributes(os.stat(fields.path()))

    def _lstat(self, fields: _Fields) -> bytes:
        return bytes([_ATTRIBUTES]) + _attributes(os.lstat(fields.path()))

    def _fstat(self, fields: _Fields) -> bytes:
        return bytes([_ATTRIBUTES]) + _attributes(os.fstat(self._file(fields)))

    def _setstat(self, fields: _Fields) -> bytes:
        path = fields.path()
        _Attributes(fields).apply(path)
        return _DONE

    def _lsetstat(self, fields: _Fields) -> bytes:
        path = fields.path()
        _Attributes(fields).apply(path, is_followed=False)
        return _DONE

    def _fsetstat(self, fields: _Fields) -> bytes:
        file = self._file(fields)
        _Attributes(fields).apply(file)
        return _DONE

    def _opendir(self, fields: _Fields) -> bytes:
        path = fields.path()
        handle = self._new_handle()
        self._folders[handle] = os.scandir(path)
        return bytes([_HANDLE]) + _text(handle)

    def _readdir(self, fields: _Fields) -> bytes:
        folder = self._folders.get(fields.text())
        if folder is None:
            raise OSError(errno.EBADF, "there is no such handle")
        names = []
        for entry in folder:
            # What has gone meanwhile is not there.
            with suppress(FileNotFoundError):
                of = entry.stat(follow_symlinks=False)
                names.append(_text(entry.name) + _text(_long_name(entry.name, of)) + _attributes(of))
            if len(names) == _NAMES_A_TIME:
                break
        if not names:
            raise EOFError
        return bytes([_NAME]) + _number(len(names)) + b"".join(names)

    def _remove(self, fields: _Fields) -> bytes:
        os.unlink(fields.path())
        return _DONE

    def _mkdir(self, fields: _Fields) -> bytes:
        path = fields.path()
        mode = _Attributes(fields).mode
        os.mkdir(path, 0o777 if mode is None else mode)
        return _DONE

    def _rmdir(self, fields: _Fields) -> bytes:
        os.rmdir(fields.path())
        return _DONE

    def _realpath(self, fields: _Fields) -> bytes:
        return _one_name(os.path.realpath(fields.path()))

    def _readlink(self, fields: _Fields) -> bytes:
        return _one_name(os.readlink(fields.path()))

    def _expand_path(self, fields: _Fields) -> bytes:
        return _one_name(os.path.realpath(os.path.expanduser(fields.path())))

    def _rename(self, fields: _Fields) -> bytes:
        """Of version 3: never over another file."""
        source, target = fields.path(), fields.path()
        if os.path.isdir(source):
            if os.path.lexists(target):
                raise OSError(errno.EEXIST, "the target is there already")
            os.rename(source, target)
        else:
            # Fails when the target is there, in one step; and where there are no links, a moment later.
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
                    raise
                if os.path.lexists(target):
                    raise OSError(errno.EEXIST, "the target is there already") from None
                os.rename(source, target)
            else:
                os.unlink(source)
        return _DONE

    def _posix_rename(self, fields: _Fields) -> bytes:
        os.replace(fields.path(), fields.path())
        return _DONE

    def _symlink(self, fields: _Fields) -> bytes:
        # OpenSSH has them the other way round than the draft, and so has everybody since.
        target, link = fields.path(), fields.path()
        os.symlink(target, link)
        return _DONE

    def _hardlink(self, fields: _Fields) -> bytes:
        os.link(fields.path(), fields.path())
        return _DONE

    def _fsync(self, fields: _Fields) -> bytes:
        os.fsync(self._file(fields))
        return _DONE

    def _statvfs(self, fields: _Fields) -> bytes:
        return _space(os.statvfs(fields.path()))

    def _fstatvfs(self, fields: _Fields) -> bytes:
        return _space(os.fstatvfs(self._file(fields)))

    def _limits(self, fields: _Fields) -> bytes:
        return bytes([_EXTENDED_ANSWER]) + struct.pack(
            ">QQQQ", MAX_PACKET_BYTES, _MAX_READ_BYTES, _MAX_READ_BYTES, MAX_HANDLES
        )


def _one_name(name: bytes) -> bytes:
    return bytes([_NAME]) + _number(1) + _text(name) * 2 + _number(0)


def _space(of: os.statvfs_result) -> bytes:
    # Of the flags OpenSSH knows two: read-only and without setuid, which are the system's first two.
    flags = of.f_flag & 3
    return bytes([_EXTENDED_ANSWER]) + struct.pack(
        ">11Q",
        *(of.f_bsize, of.f_frsize, of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree, of.f_favail),
        *(of.f_fsid, flags, of.f_namemax),
    )


_Request: TypeAlias = Callable[[Server, _Fields], bytes]

_ACCESS: Final = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
_OPENING: Final = {_APPEND: os.O_APPEND, _CREATE: os.O_CREAT, _TRUNCATE: os.O_TRUNC, _EXCLUSIVE: os.O_EXCL}

_EXTENDED_REQUESTS: Final[dict[bytes, tuple[bytes, _Request]]] = {
    b"posix-rename@openssh.com": (b"1", Server._posix_rename),
    b"statvfs@openssh.com": (b"2", Server._statvfs),
    b"fstatvfs@openssh.com": (b"2", Server._fstatvfs),
    b"hardlink@openssh.com": (b"1", Server._hardlink),
    b"fsync@openssh.com": (b"1", Server._fsync),
    b"lsetstat@openssh.com": (b"1", Server._lsetstat),
    b"limits@openssh.com": (b"1", Server._limits),
    b"expand-path@openssh.com": (b"1", Server._expand_path),
}
_REQUESTS: Final[dict[int, _Request]] = {
    3: Server._open,
    4: Server._close,
    5: Server._read,
    6: Server._write,
    7: Server._lstat,
    8: Server._fstat,
    9: Server._setstat,
    10: Server._fsetstat,
    11: Server._opendir,
    12: Server._readdir,
    13: Server._remove,
    14: Server._mkdir,
    15: Server._rmdir,
    16: Server._realpath,
    17: Server._stat,
    18: Server._rename,
    19: Server._readlink,
    20: Server._symlink,
    _EXTENDED: Server._extended,
}


def serve(source: BinaryIO, sink: BinaryIO) -> int:
    """Until the client has said its last; the program's status."""
    server = Server()
    while head := source.read(4):
        size = int.from_bytes(head, "big")
        if not 0 < size <= MAX_PACKET_BYTES:
            print(f"sftp: a packet of {size} bytes; the limit is {MAX_PACKET_BYTES}", file=sys.stderr)
            return 1
        packet = source.read(size)
        if len(packet) < size:
            return 1
        answer = server.answer(packet)
        sink.write(_text(answer))
        sink.flush()
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer))
