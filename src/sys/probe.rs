//! What this machine allows: every step a node needs is tried, in children that end again, and not asked from settings alone.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use serde::{Deserialize, Serialize};

use super::{
    OsError, enter, fd,
    namespace::{self, Backend, BuildSpec},
    process, tun,
};

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What, in a word or two.
    pub name: String,
    /// Whether it works.
    pub ok: bool,
    /// How it went, for people.
    pub detail: String,
    /// The one line an administrator could change.
    pub remedy: Option<String>,
}

impl Probe {
    fn new(name: &str, outcome: Result<String, (String, Option<String>)>) -> Self {
        let name = name.to_owned();
        match outcome {
            Ok(detail) => Self { name, ok: true, detail, remedy: None },
            Err((detail, remedy)) => Self { name, ok: false, detail, remedy },
        }
    }
}

/// Names of the probes, in order.
pub const NAMES: [&str; 7] =
    ["user namespaces", "tun", "packet socket", "namespace", "ping", "low ports", "udp buffers"];

/// Tries everything. This process must have one thread.
///
/// A machine can carry a node where `user namespaces` and `namespace` work; of `tun` and `packet socket` one is enough.
///
/// # Errors
/// No child could be forked.
pub fn all() -> io::Result<Vec<Probe>> {
    let [user, tun, packet, namespace, ping, ports, buffers] = NAMES;
    let mut probes = in_child(user, || vec![Probe::new(user, user_namespaces())])?;
    if probes.iter().all(|probe| probe.ok) {
        probes.extend(in_child(tun, || vec![Probe::new(tun, tun_device())])?);
        probes.extend(in_child(packet, || vec![Probe::new(packet, packet_socket())])?);
        probes.extend(in_child(namespace, || whole(namespace, ping, ports))?);
    } else {
        let why = || Err(("not tried: it needs a user namespace".to_owned(), None));
        probes.extend([tun, packet, namespace, ping, ports].map(|name| Probe::new(name, why())));
    }
    probes.push(udp_buffers(buffers));
    Ok(probes)
}

/// Runs `probe` in a child; what it found comes back over a socket pair.
fn in_child(name: &str, probe: impl FnOnce() -> Vec<Probe>) -> io::Result<Vec<Probe>> {
    let (ours, theirs) = fd::message_pair()?;
    let child = process::fork_child(|| {
        let text = serde_json::to_vec(&probe()).unwrap_or_default();
        i32::from(fd::send_with_fds(&theirs, &text, &[]).is_err())
    })?;
    drop(theirs);
    let mut text = vec![0; 64 * 1024];
    let length = fd::receive_with_fds(&ours, &mut text).map_or(0, |(length, _)| length);
    let status = child.wait()?;
    Ok(serde_json::from_slice(&text[..length]).unwrap_or_else(|_| {
        let detail = format!("the trial ended with status {status} and said nothing");
        vec![Probe::new(name, Err((detail, None)))]
    }))
}

type Outcome = Result<String, (String, Option<String>)>;

fn unshare() -> Result<(), (String, Option<String>)> {
    namespace::unshare_all().map_err(|error| {
        let remedy = error.remedy().map(str::to_owned);
        let text = error.to_string();
        (text.split(';').next().unwrap_or_default().to_owned(), remedy)
    })
}

fn user_namespaces() -> Outcome {
    unshare()?;
    Ok("user, network, hostname and IPC namespaces with their capabilities".to_owned())
}

fn tun_device() -> Outcome {
    unshare()?;
    match tun::make(namespace::DEVICE, 1) {
        Ok(_) => Ok("/dev/net/tun opens, and a device can be made".to_owned()),
        Err(error) => {
            let os = OsError::of(&error);
            Err((format!("open /dev/net/tun: {os}"), namespace::tun_remedy(os)))
        }
    }
}

fn packet_socket() -> Outcome {
    unshare()?;
    match tun::make_packet(namespace::DEVICE, 1400) {
        Ok(_) => Ok("a veth pair and a packet socket can be made".to_owned()),
        Err((what, error)) => {
            let os = OsError::of(&error);
            let remedy = os.is(libc::EOPNOTSUPP).then(|| "modprobe veth".to_owned());
            Err((format!("{what}: {os}"), remedy))
        }
    }
}

/// The whole namespace, and what programs in it then may.
fn whole(name: &str, ping: &str, ports: &str) -> Vec<Probe> {
    let spec = BuildSpec {
        hostname: "probe".to_owned(),
        ipv4: Ipv4Addr::new(10, 99, 0, 1),
        ipv4_prefix: 16,
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        ipv6_prefix: 48,
        mtu: 1400,
        queues: 1,
        hosts: PathBuf::from("/etc/hosts"),
        backend: Backend::Auto,
        ssh_port: true,
    };
    let built = match namespace::build(&spec) {
        Ok(built) => built,
        Err(error) => {
            let remedy = error.remedy().map(str::to_owned);
            let why = || Err(("not tried: it needs the namespace".to_owned(), None));
            let first = Probe::new(name, Err((error.to_string(), remedy)));
            return vec![first, Probe::new(ping, why()), Probe::new(ports, why())];
        }
    };
    let mut detail = format!("made whole, with a {} device", built.device.kind.as_str());
    for note in &built.notes {
        detail.push_str("; ");
        detail.push_str(note);
    }
    let mut probes = vec![Probe::new(name, Ok(detail))];
    let dropped = enter::drop_privileges().map_err(|error| (error.to_string(), None));
    let echo = || {
        let kinds = [
            (AddressFamily::Inet, SockProtocol::Icmp),
            (AddressFamily::Inet6, SockProtocol::IcmpV6),
        ];
        for (family, protocol) in kinds {
            socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).map_err(
                |error| (format!("open an ICMP socket: {}", OsError::from(error)), None),
            )?;
        }
        Ok("ping sockets are open to programs".to_owned())
    };
    let low = || match TcpListener::bind((Ipv4Addr::LOCALHOST, 80)) {
        Ok(_) => Ok("programs may listen below 1024".to_owned()),
        Err(error) => Err((format!("listen on port 80: {}", OsError::of(&error)), None)),
    };
    probes.push(Probe::new(ping, dropped.clone().and_then(|()| echo())));
    probes.push(Probe::new(ports, dropped.and_then(|()| low())));
    probes
}

/// Never a failure: small buffers cost speed only.
fn udp_buffers(name: &str) -> Probe {
    /// Below this a burst of ten gigabits is lost in a scheduling pause.
    const GOOD: u64 = 4 << 20;
    let path = Path::new("/proc/sys/net/core/rmem_max");
    let limit = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let remedy = limit
        .is_some_and(|limit| limit < GOOD)
        .then(|| format!("sysctl -w net.core.rmem_max={GOOD} net.core.wmem_max={GOOD}"));
    let detail = limit.map_or_else(
        || "the limit is not to be read".to_owned(),
        |limit| format!("up to {} KiB; larger ones carry more without loss", limit / 1024),
    );
    Probe { name: name.to_owned(), ok: true, detail, remedy }
}
