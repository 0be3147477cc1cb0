//! What is inside: devices, addresses, names, mounts; and what of it the host sees, which is nothing.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd,
    path::PathBuf,
    time::Duration,
};

use clusternet::sys::{
    clock,
    enter::{EnterError, drop_privileges, enter},
    interfaces::{self, Watcher},
    namespace::{Backend, Built},
    netlink::{LinkChange, Netlink},
    poll,
    process::{self, fork_child},
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
    unistd::geteuid,
};

use crate::{
    desk::{Desk, IPV4, IPV6, PATIENCE, Tun, USER, become_user, stage},
    packets::{await_packet, protocol, queue, read},
};

pub(crate) fn user_of_test() -> u32 {
    geteuid().as_raw()
}

pub(crate) fn whole_node(tun: Tun) {
    let backend = stage(tun);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    assert_eq!(built.device.kind, tun.kind());
    if backend == Backend::Auto && tun == Tun::Closed {
        let note = "open /dev/net/tun: permission denied; using veth and a packet socket instead";
        assert_eq!(built.notes, [note]);
    } else {
        assert_eq!(built.notes, Vec::<String>::new());
    }
    let ns = &built.namespaces;
    let expect = |script: &str, wanted: &str| desk.expect(ns, script, wanted);

    expect("id -u", &user_of_test().to_string());
    expect("hostname; uname -n", "nodea\nnodea");
    expect("ls /sys/class/net | xargs", "cn0 lo");
    expect("test -d /sys/fs/cgroup && mountpoint -q /sys/fs/cgroup && echo bound", "bound");
    expect(
        "grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status | cut -f2 | sort -u",
        "0000000000000000",
    );
    expect(
        "cat /proc/sys/net/ipv6/conf/cn0/accept_ra /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv4/conf/cn0/accept_redirects /proc/sys/net/ipv6/conf/cn0/accept_redirects | sort -u",
        "0",
    );
    // Exactly these addresses: nothing link-local.
    expect(
        "ip -o address | awk '{print $2, $4}' | sort",
        "cn0 10.99.0.5/16\ncn0 fdcc:1:2::5/48\nlo 127.0.0.1/8\nlo ::1/128",
    );
    expect("cat /sys/class/net/cn0/mtu", "1400");
    // Own addresses, lo, both families; by name too.
    for target in
        ["-4 10.99.0.5", "-6 fdcc:1:2::5", "-4 127.0.0.1", "-6 ::1", "-4 nodea", "-6 nodea"]
    {
        let (status, text) = desk.run(ns, &format!("ping -n -c 1 -W 5 {target}"));
        assert_eq!(status, 0, "ping {target}: {text}");
    }
    // The system's ssh reads the network's configuration, whatever PATH is.
    if std::path::Path::new("/etc/ssh/ssh_config").exists() {
        expect("PATH=/usr/bin ssh -G nodeb 2>&1 | grep ^port", "port 4242");
    }
    // Names: ours alone, and no waiting for a server that is not there.
    expect("getent ahostsv4 nodeb | awk '{print $1}' | sort -u", "10.99.0.7");
    expect("getent ahostsv6 nodeb | awk '{print $1}' | sort -u", "fdcc:1:2::7");
    expect("getent hosts 10.99.0.5 | awk '{print $2}'", "nodea");
    let started = clock::now().instant;
    let (status, text) = desk.run(ns, "getent ahosts no-such-name; getent ahosts www.example.org");
    let took = started.elapsed();
    assert_ne!(status, 0, "{text}");
    assert!(took < Duration::from_secs(3), "an unknown name took {took:?}");
    // The working directory stays, wherever the process was.
    std::env::set_current_dir("/usr/share").unwrap();
    expect("pwd", "/usr/share");
    // Low ports.
    let low = fork_child(|| {
        enter(ns, &desk.view()).unwrap();
        drop_privileges().unwrap();
        i32::from(TcpListener::bind((IPV4, 80)).is_err() || TcpListener::bind((IPV6, 1)).is_err())
    });
    assert_eq!(low.unwrap().wait().unwrap(), 0, "bind port 80");
    // The ssh listeners answer inside.
    assert_eq!(built.ssh_listeners.len(), 2);
    for (listener, address) in built.ssh_listeners.iter().zip([IPV4.to_string(), IPV6.to_string()])
    {
        let listener = TcpListener::from(listener.try_clone().unwrap());
        let connected = fork_child(|| {
            enter(ns, &desk.view()).unwrap();
            i32::from(std::net::TcpStream::connect((address.as_str(), 22)).is_err())
        });
        assert_eq!(connected.unwrap().wait().unwrap(), 0);
        assert!(poll::readable([listener.as_fd()], Some(PATIENCE)).unwrap()[0]);
        assert_eq!(listener.accept().unwrap().1.ip().to_string(), address);
    }
}

pub(crate) fn two_instances() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    // The same addresses: they share nothing.
    let (a, b) = (desk.build(backend), desk.build(backend));
    for built in [&a, &b] {
        let (status, text) = desk.run(&built.namespaces, "ping -n -c 1 -W 5 10.99.0.5");
        assert_eq!(status, 0, "{text}");
    }
    let (queue_a, queue_b) = (queue(a.device), queue(b.device));
    let (status, _) = desk.run(&a.namespaces, "ping -n -c 1 -W 1 10.99.0.7");
    assert_eq!(status, 1, "nobody answers");
    await_packet(&queue_a, |packet| protocol(packet) == 1);
    while let Ok(packet) = read(&queue_b) {
        assert_ne!(protocol(&packet), 1, "a packet of the other instance");
    }
}

pub(crate) fn threads() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || receive.recv());
        let error = enter(&built.namespaces, &desk.view()).unwrap_err();
        assert_eq!(error, EnterError::Threads);
        drop(send);
    });
}

pub(crate) fn nested() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let (a, b) = (desk.build(backend), desk.build(backend));
    let child = fork_child(|| {
        assert!(!enter(&a.namespaces, &desk.view()).unwrap().already);
        drop_privileges().unwrap();
        assert!(enter(&a.namespaces, &desk.view()).unwrap().already);
        drop_privileges().unwrap();
        assert_eq!(enter(&b.namespaces, &desk.view()).unwrap_err(), EnterError::Nested);
        0
    });
    assert_eq!(child.unwrap().wait().unwrap(), 0);
}

pub(crate) fn watched() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    let child = fork_child(|| {
        enter(&built.namespaces, &desk.view()).unwrap();
        let all = interfaces::addresses().unwrap();
        let found = |address: std::net::IpAddr| {
            all.iter().find(|found| found.address == address).unwrap().clone()
        };
        assert_eq!((found(IPV4.into()).prefix_len, found(IPV6.into()).prefix_len), (16, 48));
        assert!(found(IPV4.into()).point_to_point && found(Ipv4Addr::LOCALHOST.into()).loopback);
        let watcher = Watcher::open().unwrap();
        assert!(!watcher.drain().unwrap(), "nothing has changed yet");
        let mut netlink = Netlink::open().unwrap();
        netlink.add_address("cn0", [10, 98, 0, 1].into(), 24).unwrap();
        assert!(poll::readable([watcher.as_fd()], Some(PATIENCE)).unwrap()[0]);
        assert!(watcher.drain().unwrap());
        assert!(!watcher.drain().unwrap());
        let change = LinkChange { mtu: Some(1300), ..LinkChange::default() };
        netlink.change_link("cn0", change).unwrap();
        netlink.add_route("cn0", [10, 97, 0, 0].into(), 16).unwrap();
        assert!(watcher.drain().unwrap());
        0
    });
    assert_eq!(child.unwrap().wait().unwrap(), 0);
}

pub(crate) fn device_life() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let Built { namespaces, device, ssh_listeners, .. } = desk.build(backend);
    let second = device.try_clone().unwrap();
    // A reader that is killed.
    let reader = fork_child(|| {
        let _queue = queue(device.try_clone().unwrap());
        nix::unistd::pause();
        0
    })
    .unwrap();
    process::PidFd::open(reader.pid()).unwrap().signal(Signal::SIGKILL).unwrap();
    reader.wait().unwrap();
    drop(device);
    desk.expect(&namespaces, "ip -o -4 address show cn0 | awk '{print $4}'", "10.99.0.5/16");
    drop((second, ssh_listeners));
    desk.expect(&namespaces, "ls /sys/class/net", "lo");
}

pub(crate) fn callers_mounts() {
    let backend = stage(Tun::Open);
    fs::write("/mnt/mark", "mine").unwrap();
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    // Mounted by the caller after the node was built, in a namespace of his own.
    std::env::set_current_dir("/mnt").unwrap();
    desk.expect(&built.namespaces, "pwd; cat mark", "/mnt\nmine");
}

pub(crate) fn host_untouched() {
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
    let hosts = || fs::read("/etc/hosts").unwrap();
    let (mounts_before, hosts_before) = (mounts(), hosts());
    let name = nix::unistd::gethostname().unwrap();
    let interfaces = || -> Vec<PathBuf> {
        let mut all: Vec<_> =
            fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    let before = interfaces();
    let inner = fork_child(|| {
        become_user(USER);
        let desk = Desk::new();
        let built = desk.build(Backend::Packet);
        desk.expect(&built.namespaces, "hostname", "nodea");
        0
    });
    assert_eq!(inner.unwrap().wait().unwrap(), 0);
    assert_eq!(mounts(), mounts_before);
    assert_eq!(hosts(), hosts_before);
    assert_eq!(nix::unistd::gethostname().unwrap(), name);
    assert_eq!(interfaces(), before);
}

/// A host with systemd-resolved first and a name cache running.
pub(crate) fn names() {
    let backend = stage(Tun::Open);
    let (none, empty) = (None::<&str>, MsFlags::empty());
    let host = "passwd: files\nhosts: resolve [!UNAVAIL=return] files\n";
    fs::write("/mnt/nsswitch", host).unwrap();
    mount(Some("/mnt/nsswitch"), "/etc/nsswitch.conf", none, MsFlags::MS_BIND, none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), empty, none).unwrap();
    fs::create_dir("/run/nscd").unwrap();
    fs::write("/run/nscd/socket", "").unwrap();
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    let ns = &built.namespaces;
    desk.expect(ns, "cat /etc/nsswitch.conf", "passwd: files\nhosts: files dns");
    desk.expect(ns, "ls -A /run/nscd", "");
    desk.expect(ns, "grep -c ^nameserver /etc/resolv.conf", "0");
    desk.expect(ns, "getent ahostsv4 nodeb | awk '{print $1}' | sort -u", "10.99.0.7");
    assert_eq!(
        fs::read_to_string("/etc/nsswitch.conf").unwrap(),
        host,
        "ours still has the host's"
    );
    assert!(fs::exists("/run/nscd/socket").unwrap());
}
