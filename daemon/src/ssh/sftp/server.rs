//! One sftp session: requests in, answers out, in order.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStringExt as _,
        fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{RenameFlags, renameat2},
    sys::statvfs::{FsFlags, Statvfs, fstatvfs, statvfs},
};

use super::{
    files::{self, long_name, resolve},
    wire::{
        Attributes, Failed, Fields, MAX_DATA, MAX_PACKET, Packet, Status, VERSION, kind,
        read_packet, status,
    },
};

/// Files and directories one session may have open.
const MAX_HANDLES: usize = 128;
/// Directory entries in one answer, as OpenSSH's server sends them.
const MAX_NAMES: usize = 100;

/// What we do beyond version 3, and in which version.
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Serves one session until the stream ends. Relative paths begin at `home`.
pub(super) fn serve(mut from: impl Read, mut to: impl Write, home: PathBuf) -> io::Result<()> {
    let mut session = Session { home, handles: HashMap::new(), next: 0 };
    while let Some(packet) = read_packet(&mut from)? {
        let answer = session.answer(&packet);
        to.write_all(&answer.finish())?;
    }
    Ok(())
}

enum Handle {
    File(File),
    Directory(Listing),
}

/// A directory being listed.
struct Listing {
    path: PathBuf,
    entries: fs::ReadDir,
    /// `.` and `..`, which the system's iterator leaves out.
    dots: Vec<&'static str>,
}

struct Session {
    home: PathBuf,
    handles: HashMap<u32, Handle>,
    next: u32,
}

impl Session {
    fn answer(&mut self, packet: &[u8]) -> Packet {
        let mut fields = Fields(packet);
        let Ok(what) = fields.u8() else { return status(0, Status::BadMessage, "empty request") };
        let Ok(id) = fields.u32() else {
            return status(0, Status::BadMessage, "no request number");
        };
        if what == kind::INIT {
            // What stands in the number's place is the client's version.
            let mut packet = Packet::new(kind::VERSION, VERSION);
            for (name, version) in EXTENSIONS {
                packet = packet.bytes(name).bytes(version);
            }
            return packet;
        }
        match self.act(what, id, &mut fields) {
            Ok(Some(answer)) => answer,
            Ok(None) => status(id, Status::Ok, "done"),
            Err(Failed(how, text)) => status(id, how, &text),
        }
    }

    /// Does what is asked; `None` is answered with "done".
    fn act(
        &mut self,
        what: u8,
        id: u32,
        fields: &mut Fields<'_>,
    ) -> Result<Option<Packet>, Failed> {
        match what {
            kind::OPEN => {
                let (path, flags, attributes) =
                    (self.path(fields)?, fields.u32()?, fields.attributes()?);
                let file = open(&path, flags, attributes.mode)?;
                return self.keep(Handle::File(file), id).map(Some);
            }
            kind::CLOSE => {
                self.handles.remove(&handle_number(fields)?).ok_or_else(no_handle)?;
            }
            kind::READ => {
                let number = handle_number(fields)?;
                let (offset, length) = (fields.u64()?, fields.u32()?.min(MAX_DATA));
                let mut data = vec![0; length as usize];
                let n = self.file(number)?.read_at(&mut data, offset)?;
                if n == 0 && length > 0 {
                    return Err(Failed(Status::Eof, "end of file".to_owned()));
                }
                return Ok(Some(Packet::new(kind::DATA, id).bytes(&data[..n])));
            }
            kind::WRITE => {
                let number = handle_number(fields)?;
                let (offset, data) = (fields.u64()?, fields.bytes()?);
                self.file(number)?.write_all_at(data, offset)?;
            }
            kind::LSTAT => {
                let attributes = Attributes::from(&fs::symlink_metadata(self.path(fields)?)?);
                return Ok(Some(Packet::new(kind::ATTRS, id).attributes(&attributes)));
            }
            kind::STAT => {
                let attributes = Attributes::from(&fs::metadata(self.path(fields)?)?);
                return Ok(Some(Packet::new(kind::ATTRS, id).attributes(&attributes)));
            }
            kind::FSTAT => {
                let metadata = match self.handle(handle_number(fields)?)? {
                    Handle::File(file) => file.metadata()?,
                    Handle::Directory(listing) => fs::metadata(&listing.path)?,
                };
                return Ok(Some(Packet::new(kind::ATTRS, id).attributes(&(&metadata).into())));
            }
            kind::SETSTAT => {
                let (path, attributes) = (self.path(fields)?, fields.attributes()?);
                files::set_attributes(&path, &attributes, true)?;
            }
            kind::FSETSTAT => {
                let (number, attributes) = (handle_number(fields)?, fields.attributes()?);
                match self.handle(number)? {
                    Handle::File(file) => files::set_file_attributes(file, &attributes)?,
                    Handle::Directory(listing) => {
                        files::set_attributes(&listing.path, &attributes, true)?;
                    }
                }
            }
            kind::OPENDIR => {
                let path = self.path(fields)?;
                let entries = fs::read_dir(&path)?;
                let listing = Listing { path, entries, dots: vec!["..", "."] };
                return self.keep(Handle::Directory(listing), id).map(Some);
            }
            kind::READDIR => {
                let number = handle_number(fields)?;
                let Handle::Directory(listing) = self.handle(number)? else {
                    return Err(no_handle());
                };
                return listing.next(id).map(Some);
            }
            kind::REMOVE => fs::remove_file(self.path(fields)?)?,
            kind::MKDIR => {
                let (path, attributes) = (self.path(fields)?, fields.attributes()?);
                let mode = attributes.mode.map_or(0o777, |mode| mode & 0o7777);
                fs::DirBuilder::new().mode(mode).create(path)?;
            }
            kind::RMDIR => fs::remove_dir(self.path(fields)?)?,
            kind::REALPATH => {
                let path = resolve(&self.path(fields)?)?;
                return Ok(Some(one_name(id, &path)));
            }
            kind::RENAME => {
                let (old, new) = (self.path(fields)?, self.path(fields)?);
                rename_without_replacing(&old, &new)?;
            }
            kind::READLINK => {
                let target = fs::read_link(self.path(fields)?)?;
                return Ok(Some(one_name(id, &target)));
            }
            kind::SYMLINK => {
                // Target first, against the draft, as OpenSSH has always done it. The target is a text, not a path of ours.
                let (target, link) = (fields.path()?, self.path(fields)?);
                std::os::unix::fs::symlink(target, link)?;
            }
            kind::EXTENDED => return self.extended(id, fields),
            _ => return Err(Failed::unsupported()),
        }
        Ok(None)
    }

    fn extended(&mut self, id: u32, fields: &mut Fields<'_>) -> Result<Option<Packet>, Failed> {
        match fields.bytes()? {
            b"posix-rename@openssh.com" => fs::rename(self.path(fields)?, self.path(fields)?)?,
            b"hardlink@openssh.com" => fs::hard_link(self.path(fields)?, self.path(fields)?)?,
            b"fsync@openssh.com" => self.file(handle_number(fields)?)?.sync_all()?,
            b"lsetstat@openssh.com" => {
                let (path, attributes) = (self.path(fields)?, fields.attributes()?);
                files::set_attributes(&path, &attributes, false)?;
            }
            b"statvfs@openssh.com" => {
                return Ok(Some(file_system(id, &statvfs(&self.path(fields)?)?)));
            }
            b"fstatvfs@openssh.com" => {
                let number = handle_number(fields)?;
                return Ok(Some(file_system(id, &fstatvfs(self.file(number)?)?)));
            }
            b"limits@openssh.com" => {
                let limits = Packet::new(kind::EXTENDED_REPLY, id)
                    .u64(MAX_PACKET.into())
                    .u64(MAX_DATA.into())
                    .u64(MAX_DATA.into())
                    .u64(MAX_HANDLES as u64);
                return Ok(Some(limits));
            }
            b"expand-path@openssh.com" => {
                let path = fields.path()?;
                let path = match path.strip_prefix("~") {
                    Ok(rest) => self.home.join(rest),
                    Err(_) => self.home.join(&path),
                };
                return Ok(Some(one_name(id, &resolve(&path)?)));
            }
            _ => return Err(Failed::unsupported()),
        }
        Ok(None)
    }

    /// A path from the request; relative ones begin at home.
    fn path(&self, fields: &mut Fields<'_>) -> Result<PathBuf, Failed> {
        Ok(self.home.join(fields.path()?))
    }

    fn keep(&mut self, handle: Handle, id: u32) -> Result<Packet, Failed> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Failed(Status::Failure, "too many open files in this session".to_owned()));
        }
        while self.handles.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.handles.insert(self.next, handle);
        let answer = Packet::new(kind::HANDLE, id).bytes(self.next.to_be_bytes());
        self.next = self.next.wrapping_add(1);
        Ok(answer)
    }

    fn handle(&mut self, number: u32) -> Result<&mut Handle, Failed> {
        self.handles.get_mut(&number).ok_or_else(no_handle)
    }

    fn file(&mut self, number: u32) -> Result<&mut File, Failed> {
        match self.handle(number)? {
            Handle::File(file) => Ok(file),
            Handle::Directory(_) => Err(no_handle()),
        }
    }
}

impl Listing {
    /// The next entries, or "end of file". What vanishes meanwhile is left out.
    fn next(&mut self, id: u32) -> Result<Packet, Failed> {
        let mut names = Vec::new();
        let mut size = 0;
        while names.len() < MAX_NAMES && size < MAX_DATA as usize / 2 {
            let name = match self.dots.pop() {
                Some(dots) => dots.into(),
                None => match self.entries.next() {
                    Some(entry) => entry?.file_name(),
                    None => break,
                },
            };
            let Ok(metadata) = fs::symlink_metadata(self.path.join(&name)) else { continue };
            let long = long_name(&name, &metadata);
            size += 2 * name.len() + 100;
            names.push((name, long, Attributes::from(&metadata)));
        }
        if names.is_empty() {
            return Err(Failed(Status::Eof, "end of directory".to_owned()));
        }
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let mut packet = Packet::new(kind::NAME, id).u32(count);
        for (name, long, attributes) in names {
            packet = packet.bytes(name.into_vec()).bytes(long).attributes(&attributes);
        }
        debug_assert!(packet.len() <= MAX_PACKET as usize);
        Ok(packet)
    }
}

fn no_handle() -> Failed {
    Failed(Status::Failure, "no such handle".to_owned())
}

fn handle_number(fields: &mut Fields<'_>) -> Result<u32, Failed> {
    let bytes = fields.bytes()?.try_into().map_err(|_| no_handle())?;
    Ok(u32::from_be_bytes(bytes))
}

fn one_name(id: u32, path: &Path) -> Packet {
    let packet = Packet::new(kind::NAME, id).u32(1);
    packet.path(path).path(path).attributes(&Attributes::default())
}

fn open(path: &Path, flags: u32, mode: Option<u32>) -> io::Result<File> {
    let has = |flag: u32| flags & flag != 0;
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    const APPEND: u32 = 4;
    const CREATE: u32 = 8;
    const TRUNCATE: u32 = 16;
    const EXCLUSIVE: u32 = 32;
    let mut options = File::options();
    options.read(has(READ)).write(has(WRITE)).append(has(APPEND) && has(WRITE));
    options.create(has(CREATE) && !has(EXCLUSIVE)).create_new(has(CREATE) && has(EXCLUSIVE));
    options.truncate(has(TRUNCATE) && !has(APPEND));
    options.mode(mode.map_or(0o666, |mode| mode & 0o7777));
    // A named pipe without a partner must not keep the session waiting.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    if has(TRUNCATE) && has(APPEND) {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Version 3 wants a rename onto an existing name to fail. Where the file system cannot do that in one step, we look first.
fn rename_without_replacing(old: &Path, new: &Path) -> Result<(), Failed> {
    let here = nix::fcntl::AT_FDCWD;
    match renameat2(here, old, here, new, RenameFlags::RENAME_NOREPLACE) {
        Err(nix::Error::EINVAL | nix::Error::ENOSYS) => {
            if fs::symlink_metadata(new).is_ok() {
                return Err(nix::Error::EEXIST.into());
            }
            Ok(fs::rename(old, new)?)
        }
        result => Ok(result?),
    }
}

fn file_system(id: u32, found: &Statvfs) -> Packet {
    const READ_ONLY: u64 = 1;
    const NO_SUID: u64 = 2;
    let flags = if found.flags().contains(FsFlags::ST_RDONLY) { READ_ONLY } else { 0 }
        | if found.flags().contains(FsFlags::ST_NOSUID) { NO_SUID } else { 0 };
    Packet::new(kind::EXTENDED_REPLY, id)
        .u64(found.block_size())
        .u64(found.fragment_size())
        .u64(found.blocks())
        .u64(found.blocks_free())
        .u64(found.blocks_available())
        .u64(found.files())
        .u64(found.files_free())
        .u64(found.files_available())
        .u64(found.filesystem_id())
        .u64(flags)
        .u64(found.name_max())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(home: &Path) -> Session {
        Session { home: home.to_owned(), handles: HashMap::new(), next: 0 }
    }

    proptest! {
        /// Whatever comes, one answer goes back. Only requests that change nothing are made up, for this runs on a real disk.
        #[test]
        fn no_request_is_too_strange_to_be_answered(kind in prop::sample::select(vec![1u8, 4, 5, 7, 8, 12, 16, 17, 19, 21, 99, 200, 255]), rest: Vec<u8>) {
            let home = tempfile::tempdir().unwrap();
            let mut packet = vec![kind];
            packet.extend(rest);
            let answer = session(home.path()).answer(&packet).finish();
            prop_assert!(answer.len() >= 9);
        }
    }

    #[test]
    fn a_session_holds_only_so_many_files() {
        let home = tempfile::tempdir().unwrap();
        let mut session = session(home.path());
        let open = [&[kind::OPENDIR, 0, 0, 0, 1][..], &[0, 0, 0, 1], b"."].concat();
        for _ in 0..MAX_HANDLES {
            assert_eq!(session.answer(&open).finish()[4], kind::HANDLE);
        }
        assert_eq!(session.answer(&open).finish()[4], kind::STATUS);
    }
}
