//! Making a node's namespace: a private network with one device, its addresses and its name, without privilege.
//!
//! Theory of operation. A child of one thread, the builder, makes a user namespace in which its own uid and gid mean themselves
//! (programs of this field refuse to run as uid 0) and in which it holds every capability; then network, mount, hostname and IPC
//! namespaces owned by that. It sets what must be set before a device exists, brings up lo, makes the device `cn0` (a TUN, or the
//! veth pair of `packet`), gives it both addresses, names the machine, opens the ssh listeners, puts the names over
//! `/etc`, and hands all descriptors to its parent. It ends; the namespaces live on in the descriptors.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid, sethostname},
};
use serde::{Deserialize, Serialize};

use super::{
    OsError,
    enter::{Failed, View},
    fd,
    netlink::{LinkChange, Netlink},
    process, tun,
    tun::{Device, DeviceKind},
    view,
};

/// Bytes of the largest superpacket: cut into slices and sealed it still fits one datagram's worth of bytes, and with it one system
/// call, over a path of 1280 bytes too.
const GSO_MAX_SIZE: u32 = 60_000;

/// The one device inside besides lo.
pub const DEVICE: &str = "cn0";

/// Where ssh is answered inside.
const SSH_PORT: u16 = 22;

/// What to make.
#[derive(Clone, Debug)]
pub struct BuildSpec {
    /// The hostname inside: the node's name.
    pub hostname: String,
    /// Overlay IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Bits of the overlay's IPv4 network.
    pub ipv4_prefix: u8,
    /// Overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Bits of the overlay's IPv6 network.
    pub ipv6_prefix: u8,
    /// Largest packet of the device, bytes; at least 1280.
    pub mtu: u16,
    /// A file that is `/etc/hosts` inside; must exist.
    pub hosts: PathBuf,
    /// How many queues a TUN has: one for each worker.
    pub queues: u8,
    /// What to make the device of.
    pub backend: Backend,
    /// Whether to listen for ssh on both overlay addresses.
    pub ssh_port: bool,
}

/// What the device may be made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A TUN where it can be opened, else a packet socket.
    #[default]
    Auto,
    /// A TUN or nothing.
    Tun,
    /// The packet socket.
    Packet,
}

/// Descriptors of the namespaces; whoever holds them and owns the user namespace can enter.
#[derive(Debug)]
pub struct Namespaces {
    /// User namespace: owns the others.
    pub user: OwnedFd,
    /// Network.
    pub net: OwnedFd,
    /// Hostname.
    pub uts: OwnedFd,
    /// System V IPC and POSIX message queues.
    pub ipc: OwnedFd,
    /// Mounts of the builder, names included. Programs get one made from their caller's mounts instead.
    pub mount: OwnedFd,
}

impl Namespaces {
    /// How many descriptors there are.
    pub const COUNT: usize = 5;

    /// In the order in which they are sent: user, net, uts, ipc, mount.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; Self::COUNT] {
        [&self.user, &self.net, &self.uts, &self.ipc, &self.mount].map(AsFd::as_fd)
    }

    /// From that order.
    pub fn from_fds(fds: [OwnedFd; Self::COUNT]) -> Self {
        let [user, net, uts, ipc, mount] = fds;
        Self { user, net, uts, ipc, mount }
    }

    /// Other descriptors of the same namespaces.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            user: self.user.try_clone()?,
            net: self.net.try_clone()?,
            uts: self.uts.try_clone()?,
            ipc: self.ipc.try_clone()?,
            mount: self.mount.try_clone()?,
        })
    }

    /// Those of this process.
    fn own() -> io::Result<Self> {
        let open = |name| File::open(Path::new("/proc/self/ns").join(name)).map(OwnedFd::from);
        Ok(Self {
            user: open("user")?,
            net: open("net")?,
            uts: open("uts")?,
            ipc: open("ipc")?,
            mount: open("mnt")?,
        })
    }
}

/// What was made.
#[derive(Debug)]
pub struct Built {
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The overlay device.
    pub device: Device,
    /// Listening TCP sockets on port 22 of the overlay addresses, IPv4 first; blocking. Empty where none were asked for.
    pub ssh_listeners: Vec<OwnedFd>,
    /// What is not as it should be and can be lived with, for people to read.
    pub notes: Vec<String>,
}

/// Why it could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum BuildError {
    /// No user namespaces for this user.
    #[error("make a user namespace: {os}{}", shown(remedy.as_deref()))]
    UserNamespace {
        /// `EPERM`: forbidden; `ENOSPC`: a limit.
        os: OsError,
        /// What an administrator could change.
        remedy: Option<String>,
    },
    /// A user namespace, but without its capabilities (`AppArmor`, containers) or the other kinds.
    #[error("{what}: {os}{}", shown(remedy.as_deref()))]
    Capabilities {
        /// What was tried.
        what: String,
        /// The reason.
        os: OsError,
        /// What an administrator could change.
        remedy: Option<String>,
    },
    /// Neither a TUN nor a packet socket, as far as each was tried.
    #[error("make the overlay device: {what}{}", shown(remedy.as_deref()))]
    Device {
        /// What was tried and why it failed.
        what: String,
        /// What an administrator could change.
        remedy: Option<String>,
    },
    /// Only a process with one thread can fork the builder.
    #[error("fork the builder: this process has several threads")]
    Threads,
    /// Something else.
    #[error("{what}: {os}")]
    Step {
        /// What was tried.
        what: String,
        /// The reason.
        os: OsError,
    },
}

impl BuildError {
    /// The one line an administrator could change, if there is one.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::UserNamespace { remedy, .. }
            | Self::Capabilities { remedy, .. }
            | Self::Device { remedy, .. } => remedy.as_deref(),
            Self::Threads | Self::Step { .. } => None,
        }
    }

    fn step(what: impl Into<String>, os: impl Into<OsError>) -> Self {
        Self::Step { what: what.into(), os: os.into() }
    }
}

impl From<Failed> for BuildError {
    fn from(failed: Failed) -> Self {
        Self::step(failed.what, failed.os)
    }
}

fn shown(remedy: Option<&str>) -> String {
    remedy.map_or_else(String::new, |remedy| format!("; an administrator could allow it: {remedy}"))
}

/// Forks the builder, waits for it, and takes what it made. This process must have one thread, and must not have called
/// [`process::forbid_inspection`].
///
/// # Errors
/// [`BuildError`], nothing is left behind then.
pub fn build_in_child(spec: &BuildSpec) -> Result<Built, BuildError> {
    let pair = fd::message_pair().map_err(|e| BuildError::step("make a socket pair", e))?;
    let (ours, theirs) = pair;
    let child = process::fork_child(|| match hand_over(&theirs, build(spec)) {
        Ok(()) => 0,
        Err(_) => 1,
    })
    .map_err(|error| {
        let threads = error.kind() == io::ErrorKind::ResourceBusy;
        if threads { BuildError::Threads } else { BuildError::step("fork the builder", error) }
    })?;
    drop(theirs);
    let received = receive(&ours);
    let status = child.wait();
    received.unwrap_or_else(|error| {
        let what = format!("hear from the builder (its exit status was {})", status.unwrap_or(-1));
        Err(BuildError::step(what, error))
    })
}

/// What goes with the descriptors: namespaces, device, listeners.
#[derive(Serialize, Deserialize)]
struct Report {
    device: DeviceKind,
    queues: usize,
    notes: Vec<String>,
}

/// Room for a report: a few notes of a line each.
const MAX_REPORT: usize = 16 * 1024;

fn hand_over(to: &OwnedFd, built: Result<Built, BuildError>) -> io::Result<()> {
    let report = built.as_ref().map(|built| Report {
        device: built.device.kind,
        queues: built.device.fds.len(),
        notes: built.notes.clone(),
    });
    let bytes = serde_json::to_vec(&report.map_err(Clone::clone))?;
    let mut fds = Vec::new();
    if let Ok(built) = &built {
        fds.extend(built.namespaces.as_fds());
        fds.extend(built.device.fds.iter().map(AsFd::as_fd));
        fds.extend(built.ssh_listeners.iter().map(AsFd::as_fd));
    }
    fd::send_with_fds(to, &bytes, &fds)
}

fn receive(from: &OwnedFd) -> io::Result<Result<Built, BuildError>> {
    let mut bytes = vec![0; MAX_REPORT];
    let (length, fds) = fd::receive_with_fds(from, &mut bytes)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let report: Report = match serde_json::from_slice(&bytes[..length])? {
        Ok(report) => report,
        Err(error) => return Ok(Err(error)),
    };
    let mut fds = fds.into_iter();
    let namespaces: Vec<OwnedFd> = fds.by_ref().take(Namespaces::COUNT).collect();
    let queues: Vec<OwnedFd> = fds.by_ref().take(report.queues).collect();
    let Ok(namespaces) = namespaces.try_into() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if queues.is_empty() || queues.len() < report.queues {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Ok(Built {
        namespaces: Namespaces::from_fds(namespaces),
        device: Device { kind: report.device, fds: queues },
        ssh_listeners: fds.collect(),
        notes: report.notes,
    }))
}

/// Makes everything, and leaves this process inside. For the builder: a process of one thread that does nothing else.
///
/// # Errors
/// [`BuildError`].
pub fn build(spec: &BuildSpec) -> Result<Built, BuildError> {
    let mut notes = Vec::new();
    unshare_all()?;
    let ipv6 = Path::new("/proc/sys/net/ipv6").is_dir();
    if !ipv6 {
        notes.push("this kernel has no IPv6: only the IPv4 address exists inside".to_owned());
    }
    settings_before(&mut notes)?;
    let mut netlink = Netlink::open().map_err(|e| BuildError::step("open a netlink socket", e))?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    netlink.change_link("lo", up).map_err(|e| BuildError::step("bring up lo", e))?;
    let device = make_device(spec, &mut notes)?;
    configure_device(spec, &mut netlink, ipv6)?;
    settings_after()?;
    sethostname(&spec.hostname).map_err(|e| BuildError::step("set the hostname", e))?;
    let mut ssh_listeners = Vec::new();
    if spec.ssh_port {
        let addresses = [IpAddr::from(spec.ipv4), spec.ipv6.into()];
        for address in addresses.into_iter().filter(|address| ipv6 || address.is_ipv4()) {
            let listener = TcpListener::bind((address, SSH_PORT))
                .map_err(|e| BuildError::step(format!("listen on port 22 of {address}"), e))?;
            ssh_listeners.push(listener.into());
        }
    }
    // Last: the files of /etc, so that nothing above looked through them.
    notes.extend(view::put_on(&View { hosts: spec.hosts.clone(), ssh_config: None })?);
    let namespaces = Namespaces::own().map_err(|e| BuildError::step("open /proc/self/ns", e))?;
    Ok(Built { namespaces, device, ssh_listeners, notes })
}

/// The namespaces, with this user's own ids in them. Apart, so that the reason for a refusal is known.
pub(super) fn unshare_all() -> Result<(), BuildError> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| BuildError::UserNamespace {
        os: error.into(),
        remedy: user_namespace_remedy(error.into()),
    })?;
    let capabilities = |what: &str, os: OsError| BuildError::Capabilities {
        what: what.to_owned(),
        os,
        remedy: capabilities_remedy(os),
    };
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
    ] {
        fs::write(file, text).map_err(|e| capabilities(&format!("write {file}"), e.into()))?;
    }
    for (kind, what) in [
        (CloneFlags::CLONE_NEWNET, "make a network namespace in the user namespace"),
        (CloneFlags::CLONE_NEWUTS, "make a hostname namespace in the user namespace"),
        (CloneFlags::CLONE_NEWIPC, "make an IPC namespace in the user namespace"),
    ] {
        unshare(kind).map_err(|e| capabilities(what, e.into()))?;
    }
    Ok(())
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What an administrator could change after `unshare(CLONE_NEWUSER)` was refused with `os`.
fn user_namespace_remedy(os: OsError) -> Option<String> {
    let is = |path, value| read_number(path) == Some(value);
    if os.is(libc::ENOSPC) {
        // Zero, or used up; or 32 levels deep, which no setting changes.
        let limit = read_number("/proc/sys/user/max_user_namespaces")?;
        return Some(format!("sysctl -w user.max_user_namespaces={}", (limit * 2).max(15_000)));
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", 0) {
        return Some("sysctl -w kernel.unprivileged_userns_clone=1".to_owned());
    }
    apparmor_remedy().or_else(|| {
        os.is(libc::EPERM).then(|| {
            "in a container, a seccomp profile that allows unshare; in a chroot there is no way"
                .to_owned()
        })
    })
}

/// The same after the namespace was made but grants nothing.
fn capabilities_remedy(os: OsError) -> Option<String> {
    if os.is(libc::ENOSPC) {
        return Some(
            "raise the limits in /proc/sys/user, such as sysctl -w user.max_net_namespaces=15000"
                .to_owned(),
        );
    }
    apparmor_remedy()
}

fn apparmor_remedy() -> Option<String> {
    let restrict = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    (read_number(restrict) == Some(1))
        .then(|| "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0".to_owned())
}

/// What a device inherits when it is made, and what belongs to the namespace. IPv4 settings begin as the host's: all are set.
fn settings_before(notes: &mut Vec<String>) -> Result<(), BuildError> {
    for which in ["all", "default"] {
        harden(which)?;
        must(&format!("ipv6/conf/{which}/disable_ipv6"), "0")?;
    }
    must("ipv4/ip_forward", "0")?;
    let gid = getegid();
    for (name, value, without) in [
        ("ipv4/ping_group_range", format!("{gid} {gid}"), "ping needs a raw socket inside"),
        ("ipv4/ip_unprivileged_port_start", "0".to_owned(), "ports below 1024 are closed inside"),
    ] {
        if let Err(error) = setting(name, &value) {
            notes.push(format!("set net/{name}: {}; {without}", OsError::of(&error)));
        }
    }
    Ok(())
}

fn settings_after() -> Result<(), BuildError> {
    harden(DEVICE)
}

/// No router may speak to a node, and a node is none.
fn harden(which: &str) -> Result<(), BuildError> {
    for name in ["accept_redirects", "secure_redirects", "send_redirects", "accept_source_route"] {
        must(&format!("ipv4/conf/{which}/{name}"), "0")?;
    }
    for name in ["accept_ra", "accept_redirects", "accept_source_route", "autoconf"] {
        must(&format!("ipv6/conf/{which}/{name}"), "0")?;
    }
    for family in ["ipv4", "ipv6"] {
        must(&format!("{family}/conf/{which}/forwarding"), "0")?;
    }
    Ok(())
}

fn must(name: &str, value: &str) -> Result<(), BuildError> {
    setting(name, value).map_err(|e| BuildError::step(format!("set net/{name} to {value}"), e))
}

/// Writes one of this network namespace's settings, if it exists and is not so already (a container's may be read-only, and right).
fn setting(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    match fs::read_to_string(&path) {
        Ok(current) if current.split_whitespace().eq(value.split_whitespace()) => Ok(()),
        Ok(_) => fs::write(&path, value),
        // This kernel is made without that feature.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_device(spec: &BuildSpec, notes: &mut Vec<String>) -> Result<Device, BuildError> {
    let refused = match spec.backend {
        Backend::Packet => None,
        Backend::Auto | Backend::Tun => match tun::make(DEVICE, spec.queues) {
            Ok(device) => return Ok(device),
            Err(error) => Some(OsError::of(&error)),
        },
    };
    let tun = refused.map(|os| format!("open /dev/net/tun: {os}"));
    let remedy = refused.and_then(tun_remedy);
    if let (Backend::Tun, Some(what)) = (spec.backend, &tun) {
        return Err(BuildError::Device { what: what.clone(), remedy });
    }
    match tun::make_packet(DEVICE, spec.mtu) {
        Ok(device) => {
            notes.extend(tun.map(|tun| format!("{tun}; using veth and a packet socket instead")));
            Ok(device)
        }
        Err((what, error)) => {
            let packet = format!("{what}: {}", OsError::of(&error));
            let what = match tun {
                Some(tun) => format!("{tun}; {packet}"),
                None => packet,
            };
            Err(BuildError::Device { what, remedy })
        }
    }
}

/// What an administrator could change after `/dev/net/tun` did not open.
pub(super) fn tun_remedy(os: OsError) -> Option<String> {
    if os.is(libc::EACCES) {
        Some("chmod 0666 /dev/net/tun".to_owned())
    } else if os.is(libc::ENOENT) || os.is(libc::ENODEV) || os.is(libc::ENXIO) {
        Some("modprobe tun".to_owned())
    } else {
        None
    }
}

fn configure_device(spec: &BuildSpec, netlink: &mut Netlink, ipv6: bool) -> Result<(), BuildError> {
    let change = LinkChange {
        mtu: Some(spec.mtu),
        arp: Some(false),
        // Nothing carries it: without the flag programs are told so at once.
        multicast: Some(false),
        // The overlay address is the node's one IPv6 address: programs that announce all they have would announce a dead end.
        no_link_local: ipv6,
        ..LinkChange::default()
    };
    let what = |what: &str| format!("{what} {DEVICE}");
    netlink.change_link(DEVICE, change).map_err(|e| BuildError::step(what("configure"), e))?;
    // Older kernels cannot be asked: superpackets of 64 KiB then leave in two calls.
    let fitting = LinkChange { gso_max_size: Some(GSO_MAX_SIZE), ..LinkChange::default() };
    let _ = netlink.change_link(DEVICE, fitting);
    // Up before the addresses: IPv6 addresses of a link that is down have no routes.
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    netlink.change_link(DEVICE, up).map_err(|e| BuildError::step(what("bring up"), e))?;
    let mut addresses = vec![(IpAddr::from(spec.ipv4), spec.ipv4_prefix)];
    if ipv6 {
        addresses.push((spec.ipv6.into(), spec.ipv6_prefix));
    }
    for (address, prefix) in addresses {
        netlink
            .add_address(DEVICE, address, prefix)
            .map_err(|e| BuildError::step(format!("give {DEVICE} the address {address}"), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_travels_and_says_what_to_do() {
        let error = BuildError::UserNamespace {
            os: OsError(libc::ENOSPC),
            remedy: Some("sysctl -w user.max_user_namespaces=15000".to_owned()),
        };
        let text = error.to_string();
        assert_eq!(
            text,
            "make a user namespace: no space left on device; an administrator could allow it: sysctl -w user.max_user_namespaces=15000"
        );
        let (ours, theirs) = fd::message_pair().unwrap();
        hand_over(&theirs, Err(error.clone())).unwrap();
        assert_eq!(receive(&ours).unwrap().unwrap_err(), error);
        drop(theirs);
        assert_eq!(receive(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_limit_is_doubled_and_a_mode_is_opened() {
        let os = OsError(libc::ENOSPC);
        assert!(user_namespace_remedy(os).unwrap().starts_with("sysctl -w user.max_user_names"));
        assert_eq!(tun_remedy(OsError(libc::EACCES)).unwrap(), "chmod 0666 /dev/net/tun");
        assert_eq!(tun_remedy(OsError(libc::ENOENT)).unwrap(), "modprobe tun");
    }
}
