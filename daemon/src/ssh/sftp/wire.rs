//! The protocol's numbers, and reading and writing its fields.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::PathBuf,
};

/// The version both ends speak.
pub(super) const VERSION: u32 = 3;
/// The largest request taken and the largest answer given, as OpenSSH's.
pub(super) const MAX_PACKET: u32 = 256 * 1024;
/// The most data in one read or write: a packet less room for its head.
pub(super) const MAX_DATA: u32 = MAX_PACKET - 1024;

/// Kinds of packets.
pub(super) mod kind {
    pub(in super::super) const INIT: u8 = 1;
    pub(in super::super) const VERSION: u8 = 2;
    pub(in super::super) const OPEN: u8 = 3;
    pub(in super::super) const CLOSE: u8 = 4;
    pub(in super::super) const READ: u8 = 5;
    pub(in super::super) const WRITE: u8 = 6;
    pub(in super::super) const LSTAT: u8 = 7;
    pub(in super::super) const FSTAT: u8 = 8;
    pub(in super::super) const SETSTAT: u8 = 9;
    pub(in super::super) const FSETSTAT: u8 = 10;
    pub(in super::super) const OPENDIR: u8 = 11;
    pub(in super::super) const READDIR: u8 = 12;
    pub(in super::super) const REMOVE: u8 = 13;
    pub(in super::super) const MKDIR: u8 = 14;
    pub(in super::super) const RMDIR: u8 = 15;
    pub(in super::super) const REALPATH: u8 = 16;
    pub(in super::super) const STAT: u8 = 17;
    pub(in super::super) const RENAME: u8 = 18;
    pub(in super::super) const READLINK: u8 = 19;
    pub(in super::super) const SYMLINK: u8 = 20;
    pub(in super::super) const STATUS: u8 = 101;
    pub(in super::super) const HANDLE: u8 = 102;
    pub(in super::super) const DATA: u8 = 103;
    pub(in super::super) const NAME: u8 = 104;
    pub(in super::super) const ATTRS: u8 = 105;
    pub(in super::super) const EXTENDED: u8 = 200;
    pub(in super::super) const EXTENDED_REPLY: u8 = 201;
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Status {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// What a request that failed is answered with.
#[derive(Debug)]
pub(super) struct Failed(pub(super) Status, pub(super) String);

impl Failed {
    pub(super) fn bad() -> Self {
        Self(Status::BadMessage, "malformed request".to_owned())
    }
    pub(super) fn unsupported() -> Self {
        Self(Status::Unsupported, "not supported".to_owned())
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        let kinds = [
            (io::ErrorKind::NotFound, Status::NoSuchFile),
            (io::ErrorKind::PermissionDenied, Status::PermissionDenied),
            (io::ErrorKind::Unsupported, Status::Unsupported),
        ];
        let known = kinds.iter().find(|(kind, _)| *kind == error.kind());
        let status = known.map_or(Status::Failure, |(_, status)| *status);
        Self(status, error.to_string())
    }
}

impl From<nix::Error> for Failed {
    fn from(error: nix::Error) -> Self {
        io::Error::from(error).into()
    }
}

/// Attributes of a file, each there or not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Last access and last change, seconds since 1970.
    pub(super) times: Option<(u32, u32)>,
}

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const MODE: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;

impl From<&std::fs::Metadata> for Attributes {
    fn from(metadata: &std::fs::Metadata) -> Self {
        let seconds = |n: i64| u32::try_from(n.max(0)).unwrap_or(u32::MAX);
        Self {
            size: Some(metadata.size()),
            owner: Some((metadata.uid(), metadata.gid())),
            mode: Some(metadata.mode()),
            times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
        }
    }
}

/// Takes fields off the front of a request.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Failed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or_else(Failed::bad)?;
        self.0 = rest;
        Ok(taken)
    }
    pub(super) fn u8(&mut self) -> Result<u8, Failed> {
        Ok(self.take(1)?[0])
    }
    pub(super) fn u32(&mut self) -> Result<u32, Failed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Failed::bad())?;
        Ok(u32::from_be_bytes(bytes))
    }
    pub(super) fn u64(&mut self) -> Result<u64, Failed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Failed::bad())?;
        Ok(u64::from_be_bytes(bytes))
    }
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Failed> {
        let n = self.u32()?;
        self.take(usize::try_from(n).map_err(|_| Failed::bad())?)
    }
    pub(super) fn path(&mut self) -> Result<PathBuf, Failed> {
        let bytes = self.bytes()?;
        if bytes.contains(&0) {
            return Err(Failed::bad());
        }
        Ok(OsString::from_vec(bytes.to_vec()).into())
    }
    pub(super) fn attributes(&mut self) -> Result<Attributes, Failed> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & MODE != 0 {
            attributes.mode = Some(self.u32()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

/// One packet being written. Its length is filled in at the end.
pub(super) struct Packet(Vec<u8>);

impl Packet {
    pub(super) fn new(kind: u8, id: u32) -> Self {
        Self(vec![0, 0, 0, 0, kind]).u32(id)
    }
    pub(super) fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }
    pub(super) fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }
    pub(super) fn bytes(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let mut packet = self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        packet.0.extend_from_slice(bytes);
        packet
    }
    pub(super) fn path(self, path: impl AsRef<std::path::Path>) -> Self {
        self.bytes(path.as_ref().as_os_str().as_bytes())
    }
    pub(super) fn attributes(self, attributes: &Attributes) -> Self {
        let flag = |there: bool, flag: u32| if there { flag } else { 0 };
        let mut packet = self.u32(
            flag(attributes.size.is_some(), SIZE)
                | flag(attributes.owner.is_some(), OWNER)
                | flag(attributes.mode.is_some(), MODE)
                | flag(attributes.times.is_some(), TIMES),
        );
        if let Some(size) = attributes.size {
            packet = packet.u64(size);
        }
        if let Some((user, group)) = attributes.owner {
            packet = packet.u32(user).u32(group);
        }
        if let Some(mode) = attributes.mode {
            packet = packet.u32(mode);
        }
        if let Some((access, change)) = attributes.times {
            packet = packet.u32(access).u32(change);
        }
        packet
    }
    /// How long it has become.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// The answer that is only a status.
pub(super) fn status(id: u32, status: Status, text: &str) -> Packet {
    Packet::new(kind::STATUS, id).u32(status as u32).bytes(text).bytes("")
}

/// Reads one request; `None` at the end of the stream.
pub(super) fn read_packet(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length);
    if length == 0 || length > MAX_PACKET {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a request of impossible length"));
    }
    let mut packet = vec![0; length as usize];
    from.read_exact(&mut packet)?;
    Ok(Some(packet))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn attributes_survive_the_wire(size: Option<u64>, owner: Option<(u32, u32)>, mode: Option<u32>, times: Option<(u32, u32)>) {
            let attributes = Attributes { size, owner, mode, times };
            let packet = Packet::new(kind::ATTRS, 7).attributes(&attributes).finish();
            let mut fields = Fields(&packet[9..]);
            prop_assert_eq!(fields.attributes().unwrap(), attributes);
            prop_assert!(fields.0.is_empty());
        }
    }
}
