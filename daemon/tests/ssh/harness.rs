//! A server on loopback addresses, and commands run against it.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use clusternet::words::{id::Owner, key::SigningSecret};
use clusternet_daemon::ssh::{
    Account, Execute, Member, OwnerTable, SshSettings,
    client::{self, NodeKey},
};
use tokio::sync::watch;

/// A server with its own home directory. Everything ends when dropped.
pub(crate) struct Server {
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) owners: watch::Sender<OwnerTable>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Whether `program` is there; says so when it is not.
pub(crate) fn have(program: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .any(|place| place.join(program).is_file());
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

pub(crate) fn member(name: &str, owner: Option<&str>) -> Member {
    Member {
        name: name.parse().unwrap(),
        owner: owner.map(|owner| owner.parse::<Owner>().unwrap()),
    }
}

/// Node a (alice) answers on 127.0.0.1 and ::1; b (alice) is 127.0.0.2, c (bob) 127.0.0.3, d 127.0.0.4 has no owner.
pub(crate) fn owner_table() -> OwnerTable {
    let v4 = |n| IpAddr::from([127, 0, 0, n]);
    OwnerTable {
        here: member("a", Some("alice")),
        execute: Execute::Owner,
        members: HashMap::from([
            (v4(1), member("a", Some("alice"))),
            (IpAddr::from(Ipv6Addr::LOCALHOST), member("a", Some("alice"))),
            (v4(2), member("b", Some("alice"))),
            (v4(3), member("c", Some("bob"))),
            (v4(4), member("d", None)),
        ]),
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        // As the daemon does when it starts: under nohup, hanging up would be ignored.
        clusternet::sys::process::forget_callers_signals();
        Self::start_with(Vec::new())
    }

    pub(crate) fn start_with(variables: Vec<(OsString, OsString)>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = v4.local_addr().unwrap().port();
        let mut listeners = vec![v4];
        listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, port)));
        let host_secret = SigningSecret::generate();
        let node = NodeKey {
            names: vec!["a".to_owned(), "a.lab".to_owned(), "localhost".to_owned()],
            addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            key: host_secret.public(),
        };
        client::write(&scratch.path().join("client"), &[node], port).unwrap();
        let settings = SshSettings {
            host_secret,
            session_environment: variables,
            account: Account { name: "tester".to_owned(), home, shell: PathBuf::from("/bin/bash") },
        };
        let (owners, table) = watch::channel(owner_table());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    ended = clusternet_daemon::ssh::serve(listeners, settings, table) => ended.unwrap(),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
        });
        Self { scratch, port, owners, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.scratch.path().join("home")
    }

    pub(crate) fn bin(&self) -> PathBuf {
        client::bin_directory(&self.scratch.path().join("client"))
    }

    /// A program of the client's `bin`, as `run` would find it.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin().join(name));
        let path = std::env::join_paths(
            std::iter::once(self.bin())
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        command.env("PATH", path.unwrap()).env_remove("LC_ALL").env_remove("LANG");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn ssh(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("ssh");
        command.args(arguments);
        command
    }

    /// Runs `ssh ARGUMENTS` with `input`; fails if it takes longer than a minute.
    pub(crate) fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        finish(self.ssh(arguments), input)
    }

    /// Runs a command at the other end: what it wrote, when it went well and said nothing on standard error.
    #[track_caller]
    pub(crate) fn says(&self, words: &str) -> String {
        let output = self.run(&["127.0.0.1", words], b"");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words}");
        assert_eq!(output.status.code(), Some(0), "{words}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Runs a command with this input to its end.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Output {
    let described = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let reader = |mut from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = from.read_to_end(&mut all);
            all
        })
    };
    let stdout = reader(Box::new(child.stdout.take().unwrap()));
    let stderr = reader(Box::new(child.stderr.take().unwrap()));
    let status = wait(&mut child, &described);
    writing.join().unwrap();
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Waits for a child, a minute at most.
pub(crate) fn wait(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let mut status = None;
    if !poll(Duration::from_secs(60), || {
        status = child.try_wait().unwrap();
        status.is_some()
    }) {
        let _ = child.kill();
        let _ = child.wait();
        panic!("did not end within a minute: {what}");
    }
    status.unwrap()
}

/// Asks every few milliseconds until it is so, or until `patience` is over.
pub(crate) fn poll(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let step = Duration::from_millis(10);
    for _ in 0..patience.as_millis() / step.as_millis() {
        if is_so() {
            return true;
        }
        std::thread::sleep(step);
    }
    is_so()
}

/// Waits until it is so, 20 seconds at most.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(poll(Duration::from_secs(20), is_so), "never came to be: {what}");
}

/// Whether the process with this number lives.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// A child that is killed when the test ends.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads lines from a child's standard output until one contains `text`.
pub(crate) fn read_until(child: &mut Child, text: &str) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains(text) {
        if stdout.read(&mut byte).unwrap() == 0 {
            panic!("ended before {text:?}: {}", String::from_utf8_lossy(&seen));
        }
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}
