//! One instance on this machine: joined, entered, killed in parts, left. As an ordinary user: as root, as one without account.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail with the test")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use clusternet::sys::clock;
use netns_tests::binaries;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

/// Everything here takes a tenth of this.
const PATIENCE: Duration = Duration::from_secs(20);

/// A user, his directories and a network, with a name for the instance that no other test has.
struct Place {
    directory: PathBuf,
    instance: String,
    uid: u32,
}

impl Place {
    /// With a network whose master listens on a free port.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        binaries::build_once().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("t{}-{number}", std::process::id());
        let own = geteuid().as_raw();
        // As root: somebody who has no account, and nothing else of whom runs here.
        let uid =
            if own == 0 { 2_000_000 + std::process::id() % 100_000 * 16 + number } else { own };
        let directory = PathBuf::from(format!("/tmp/clusternet-test-{instance}"));
        for name in ["", "bin", "home", "run"] {
            let path = directory.join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            chown(&path, Some(uid), Some(uid)).unwrap();
        }
        // The build may lie where only its owner comes.
        for name in binaries::BINARIES {
            fs::copy(binaries::path(name).unwrap(), directory.join("bin").join(name)).unwrap();
        }
        let place = Self { directory, instance, uid };
        let endpoint = format!("udp://127.0.0.1:{}", free_port());
        place.ok(&["init", "lab", "--master", "head", "--endpoint", &endpoint, "--owner", "ann"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/clusternet"));
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        if geteuid().is_root() {
            command.uid(self.uid).gid(self.uid);
        }
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What a command that must go well says.
    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that must fail with this status complains of.
    #[track_caller]
    fn fails(&self, status: i32, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stderr).unwrap()
    }

    #[track_caller]
    fn join(&self) -> String {
        self.ok(&["join", "lab/master.toml", "--key", "lab/head.key", "--name", &self.instance])
    }

    /// Runs a shell script inside; what it says.
    #[track_caller]
    fn inside(&self, script: &str) -> String {
        self.ok(&["run", "--on", &self.instance, "--", "sh", "-c", script]).trim().to_owned()
    }

    fn spawn_inside(&self, script: &str) -> Program {
        let words = ["run", "--on", &self.instance, "--", "sh", "-c", script];
        let mut child = self.command(&words).stdout(Stdio::piped()).spawn().unwrap();
        // It says a line when it is there.
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        Program(child)
    }

    fn runtime(&self) -> PathBuf {
        self.path("run/clusternet").join(&self.instance)
    }

    /// The process in this role, if it lives.
    fn process(&self, role: &str) -> Option<Pid> {
        let wanted = format!("\0{role}\0{}\0", self.instance);
        processes().into_iter().find_map(|(pid, words)| words.contains(&wanted).then_some(pid))
    }

    #[track_caller]
    fn kill_9(&self, role: &str) -> Pid {
        let pid = self.process(role).unwrap();
        kill(pid, Signal::SIGKILL).unwrap();
        pid
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let left = || {
            let running: Vec<_> = ["keeper", "serve", "inside"]
                .into_iter()
                .filter(|role| self.process(role).is_some())
                .collect();
            (running, self.runtime().exists())
        };
        until("nothing is left", || left() == (Vec::new(), false));
    }

    fn log(&self) -> String {
        let states = self.path("home/.local/state/clusternet");
        let machines = fs::read_dir(states).into_iter().flatten().flatten();
        let logs = machines.map(|machine| machine.path().join(&self.instance).join("log"));
        logs.filter_map(|path| fs::read_to_string(path).ok()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.output(&["leave", "--kill", &self.instance]);
        for role in ["keeper", "serve", "inside"] {
            if let Some(pid) = self.process(role) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A command that runs inside; ended with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every process that is not a zombie, with its words, each ended by a zero.
fn processes() -> Vec<(Pid, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let all = entries.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        Some((Pid::from_raw(pid), String::from_utf8_lossy(&words).into_owned()))
    });
    all.filter(|(_, words)| !words.is_empty()).collect()
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = clock::now().instant + PATIENCE;
    while !condition() {
        assert!(clock::now().instant < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn free_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_lone_master_comes_up_at_once_and_leaves_nothing_behind() {
    let place = Place::new();
    let before = clock::now().instant;
    let told = place.join();
    assert!(clock::now().instant.duration_since(before) < Duration::from_secs(10));
    assert!(told.contains("joined network lab as head") && told.contains("10.99.0.1"), "{told}");
    let status = place.ok(&["status"]);
    assert!(status.contains("this node"), "{status}");
    let json = place.ok(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["node"]["name"], "head");

    let told = place.fails(1, &["join", "lab/master.toml", "--name", &place.instance]);
    assert!(told.contains("is running already (process "), "{told}");
    place.ok(&["status"]);

    place.ok(&["leave"]);
    place.nothing_is_left();
    assert!(!place.path("run/clusternet").exists());
    let told = place.fails(3, &["status"]);
    assert!(told.contains("no instance runs on this machine"), "{told}");
}

#[test]
fn a_command_inside_is_the_users_own_and_ends_as_it_ends() {
    let place = Place::new();
    place.join();
    let on = place.instance.as_str();
    place.fails(7, &["run", "--", "sh", "-c", "exit 7"]);
    let told = place.fails(127, &["run", "--", "no-such-program"]);
    assert!(told.contains("run no-such-program"), "{told}");
    place.fails(126, &["run", "--", "/etc/hosts"]);
    place.fails(125, &["run", "--on", "other", "--", "true"]);
    let killed = place.output(&["run", "--on", on, "sh", "-c", "kill -TERM $$"]);
    assert_eq!(killed.status.signal(), Some(15), "{killed:?}");

    assert_eq!(place.inside("id -u"), place.uid.to_string());
    assert_eq!(place.inside("hostname"), "head");
    assert_eq!(place.inside("pwd"), place.directory.display().to_string());
    assert_eq!(place.inside("grep CapEff /proc/self/status"), "CapEff:\t0000000000000000");
    assert_eq!(place.inside("ls /sys/class/net | sort | xargs"), "cn0 lo");
    assert_eq!(place.inside("echo $CLUSTERNET_INSTANCE"), on);
    let hosts = place.inside("cat /etc/hosts");
    assert!(hosts.contains("10.99.0.1 head head.lab"), "{hosts}");

    let mut cat = place
        .command(&["run", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through");

    let program = place.command(&["run", "sh", "-c", "echo $$"]).stdout(Stdio::piped()).spawn();
    let program = program.unwrap();
    let pid = program.id().to_string();
    let told = String::from_utf8(program.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(told.trim(), pid, "the same process, nothing in between");
}

#[test]
fn the_terminal_of_a_command_is_its_own() {
    let place = Place::new();
    place.join();
    let script = format!(
        "{} run --on {} -- sh -c 'tty; stty size'",
        place.path("bin/clusternet").display(),
        place.instance
    );
    let mut command = place.command(&[]);
    let mut under = Command::new("script");
    under
        .args(["-qec", &script, "/dev/null"])
        .env_clear()
        .envs(command.env_clear().get_envs().filter_map(|(name, value)| Some((name, value?))));
    under.env("XDG_RUNTIME_DIR", place.path("run")).env("PATH", "/usr/bin:/bin");
    under.env("HOME", place.path("home")).stdin(Stdio::null());
    if geteuid().is_root() {
        under.uid(place.uid).gid(place.uid);
    }
    let Ok(output) = under.output() else {
        println!("skipped: script (Debian package bsdutils) is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/dev/pts/"), "{text}");
}

#[test]
fn leaving_waits_for_programs_or_ends_them() {
    let place = Place::new();
    place.join();
    let _deaf = place.spawn_inside("trap '' TERM; echo; while :; do sleep 1; done");
    let mut polite = place.spawn_inside("echo; exec sleep 600");
    let told = place.fails(1, &["leave", &place.instance]);
    assert!(told.contains("programs run inside") && told.contains("sleep 600"), "{told}");
    assert!(!told.contains("clusternetd"), "ours are not listed: {told}");
    place.ok(&["status"]);

    let before = clock::now().instant;
    place.ok(&["leave", &place.instance, "--kill"]);
    let took = clock::now().instant.duration_since(before);
    assert!(took >= Duration::from_secs(5), "the deaf one had its time: {took:?}");
    assert_eq!(polite.0.wait().unwrap().signal(), Some(15));
    place.nothing_is_left();
}

#[test]
fn serve_dies_and_comes_back_with_the_same_device() {
    let place = Place::new();
    place.join();
    let _program = place.spawn_inside("echo; exec sleep 600");
    let device = place.inside("cat /sys/class/net/cn0/ifindex; readlink /proc/self/ns/net");
    let dead = place.kill_9("serve");
    until("another serve", || place.process("serve").is_some_and(|pid| pid != dead));
    place.ok(&["status"]);
    let after = place.inside("cat /sys/class/net/cn0/ifindex; readlink /proc/self/ns/net");
    assert_eq!(after, device);
    assert_eq!(place.inside("cat /sys/class/net/cn0/carrier 2>/dev/null || echo 0"), "1");

    let dead = place.kill_9("inside");
    until("another inside", || place.process("inside").is_some_and(|pid| pid != dead));
    let told = place.fails(1, &["leave", &place.instance]);
    assert!(told.contains("sleep 600") && !told.contains("clusternetd"), "{told}");
}

#[test]
fn the_keeper_dies_and_takes_everything_with_it() {
    let place = Place::new();
    place.join();
    place.kill_9("keeper");
    place.nothing_is_left();
    place.join();
    place.ok(&["leave"]);
}

#[test]
fn all_die_at_once_and_the_next_join_clears_up() {
    let place = Place::new();
    place.join();
    let all = ["keeper", "serve", "inside"].map(|role| place.process(role).unwrap());
    // Stopped first, so that none sees another one die.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in all {
            kill(pid, signal).unwrap();
        }
    }
    until("all dead", || ["keeper", "serve", "inside"].iter().all(|r| place.process(r).is_none()));
    assert!(place.runtime().join("control").exists(), "something stale is there");
    fs::write(place.runtime().join("stale"), "").unwrap();
    let told = place.fails(3, &["status"]);
    assert!(told.contains("no instance runs"), "{told}");
    place.join();
    assert!(!place.runtime().join("stale").exists());
    place.ok(&["status"]);
}

#[test]
fn a_removed_control_socket_is_made_again() {
    let place = Place::new();
    place.join();
    fs::remove_file(place.runtime().join("control")).unwrap();
    until("the socket", || place.output(&["status"]).status.success());
    fs::remove_dir_all(place.runtime()).unwrap();
    until("the directory", || place.output(&["status"]).status.success());
    until("the hosts file", || {
        fs::read_to_string(place.runtime().join("hosts")).is_ok_and(|text| text.contains("head"))
    });
    assert_eq!(place.inside("getent hosts head | wc -l"), "1");
    let told = place.fails(1, &["join", "lab/master.toml", "--name", &place.instance]);
    assert!(told.contains("is running already"), "{told}");
    place.ok(&["leave"]);
    place.nothing_is_left();
}

/// As the superuser or the instance's own user, who alone may connect.
fn connect(place: &Place) -> UnixStream {
    let stream = UnixStream::connect(place.runtime().join("control")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn nonsense_on_the_control_socket_disturbs_nobody() {
    let place = Place::new();
    place.join();
    let mut silent: Vec<UnixStream> = (0..100).map(|_| connect(&place)).collect();
    drop(silent.split_off(50));
    let mut seed = 88_172_645_463_325_252_u64;
    for round in 0..50_usize {
        let mut bytes = Vec::new();
        while bytes.len() < round * 40 {
            // Xorshift: the same bytes in every run.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.extend(seed.to_le_bytes());
        }
        bytes.push(b'\n');
        let mut stream = connect(&place);
        stream.write_all(&bytes).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("{\"reply\":\"error\"") && reply.ends_with("\n"), "{reply}");
    }
    for text in ["{}", "[]", "{\"request\":\"leave\"}", "{\"request\":\"none\"}"] {
        let mut stream = connect(&place);
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("cannot be understood"), "{text}: {reply}");
    }
    // A line without end: cut off, whether it has been written whole or not.
    let mut endless = connect(&place);
    endless.set_write_timeout(Some(PATIENCE)).unwrap();
    let written = (0..64).try_for_each(|_| endless.write_all(&[b'x'; 1 << 16]));
    let ended = written.is_err() || matches!(endless.read(&mut [0; 16]), Ok(0) | Err(_));
    assert!(ended, "the endless line was taken");
    let serve = place.process("serve");
    place.ok(&["status"]);
    drop(silent);
    assert_eq!(place.process("serve"), serve);
    assert!(!place.log().contains("has died"), "{}", place.log());
}

#[test]
fn another_user_gets_nowhere() {
    if !geteuid().is_root() {
        println!("skipped: needs root to be two users; run: sudo make test");
        return;
    }
    let place = Place::new();
    place.join();
    let other = place.uid + 1_000_000;
    // Even where the directories are opened by mistake.
    for path in ["", "bin", "run", "run/clusternet"] {
        fs::set_permissions(place.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let as_other = |words: &[&str]| {
        let mut command = place.command(words);
        command.uid(other).gid(other).current_dir("/").output().unwrap()
    };
    let output = as_other(&["status", "--on", &place.instance]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o755)).unwrap();
    let control = place.runtime().join("control");
    fs::set_permissions(&control, fs::Permissions::from_mode(0o666)).unwrap();
    // The refusal may come before the question has been asked.
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX)\n\
                  s.connect(sys.argv[1])\n\
                  try: s.sendall(b'{\"request\":\"enter\"}\\n')\n\
                  except BrokenPipeError: pass\n\
                  m = s.recvmsg(65536, 65536)\n\
                  print(m[0].decode(), len(m[1]))";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(&control).uid(other).gid(other);
    match python.output() {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            // The first byte may come alone.
            assert!(told.starts_with('{') && told.trim_end().ends_with(" 0"), "{output:?}");
            assert!(place.log().contains("another user tried the control socket"));
        }
        Err(_) => println!("skipped in part: python3 is not installed"),
    }
    let pid = place.process("inside").unwrap();
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-U", "-n", "-t", &pid.to_string(), "true"]).uid(other).gid(other);
    assert!(!nsenter.output().is_ok_and(|output| output.status.success()));
}

#[test]
fn a_join_that_cannot_succeed_says_why_and_leaves_nothing() {
    let place = Place::new();
    place.ok(&["issue", "a"]);
    let join = |key: &str, more: &[&str]| {
        let words = ["join", "lab/master.toml", "--key", key, "--name", &place.instance];
        let told = place.fails(1, &[&words, more].concat());
        place.nothing_is_left();
        told
    };
    let told = join("lab/a.key", &["--wait", "1s"]);
    assert!(told.contains("no member of lab has accepted this node within 1 s"), "{told}");
    assert!(told.contains("head at udp://127.0.0.1:"), "{told}");

    let told = join("lab/none.key", &[]);
    assert!(told.contains("lab/none.key"), "{told}");
    let told = join("lab/authority.key", &[]);
    assert!(told.contains("lab/authority.key"), "{told}");
    let key = place.path("lab/a.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let told = join("lab/a.key", &[]);
    assert!(told.contains("chmod 600"), "{told}");

    place.ok(&[
        "init",
        "other",
        "--master",
        "x",
        "--endpoint",
        "udp://127.0.0.1:9",
        "--owner",
        "none",
    ]);
    let told = join("other/x.key", &[]);
    assert!(told.contains("of another network"), "{told}");

    let taken = std::net::UdpSocket::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut master = fs::read_to_string(place.path("lab/master.toml")).unwrap();
    master.push_str(&format!("\n[node]\nlisten = {port}\n"));
    fs::write(place.path("lab/master.toml"), &master).unwrap();
    let told = join("lab/head.key", &[]);
    assert!(told.contains(&format!("listen on UDP {port}")), "{told}");
    let changed = master.replace("name = \"lab\"", "name = \"lob\"");
    fs::write(place.path("lab/master.toml"), changed).unwrap();
    let told = join("lab/head.key", &[]);
    assert!(told.contains("master.toml"), "{told}");
}

#[test]
fn a_node_that_knows_the_network_comes_up_without_its_master() {
    let place = Place::new();
    place.ok(&["issue", "a"]);
    place.join();
    let other = format!("{}a", place.instance);
    let join = |wait: &str| {
        place.ok(&[
            "join",
            "lab/master.toml",
            "--key",
            "lab/a.key",
            "--name",
            &other,
            "--wait",
            wait,
        ])
    };
    let told = join("15s");
    assert!(told.contains("accepted by head, direct udp 127.0.0.1:"), "{told}");
    let told = place.fails(2, &["status"]);
    assert!(told.contains(&format!("{}, {other}", place.instance)), "{told}");
    until("an answer", || {
        place.output(&["ping", "--on", &other, "head", "-c", "1"]).status.success()
    });
    until("the roster on disk", || {
        let states = fs::read_dir(place.path("home/.local/state/clusternet")).unwrap().flatten();
        states.map(|machine| machine.path().join(&other).join("roster")).any(|path| path.exists())
    });
    place.ok(&["leave", &other]);
    place.ok(&["leave", &place.instance]);
    let told = join("1s");
    assert!(told.contains("no member answers yet"), "{told}");
    place.ok(&["leave", &other]);
}

#[test]
fn in_the_foreground_it_ends_with_its_caller() {
    let place = Place::new();
    let words = ["join", "lab/master.toml", "--name", &place.instance, "--foreground"];
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let child = place.command(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = Program(child.unwrap());
        // It says that it has joined, and stays.
        child.0.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
        place.ok(&["status"]);
        let pid = Pid::from_raw(i32::try_from(child.0.id()).unwrap());
        kill(pid, signal).unwrap();
        let status = child.0.wait().unwrap();
        let good = signal == Signal::SIGKILL || status.success();
        assert!(good, "{signal}: {status}");
        place.nothing_is_left();
    }
}

#[test]
fn a_join_over_ssh_returns() {
    let place = Place::new();
    // As sshd does: the session ends when nobody holds its pipes.
    let mut child = place
        .command(&["join", "lab/master.toml", "--name", &place.instance])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(child.wait().unwrap().success(), "{out}{errors}");
    assert_eq!(errors, "", "silent without a terminal");
}

#[test]
fn secrets_are_in_no_argument_environment_or_log() {
    let place = Place::new();
    place.join();
    let key = fs::read_to_string(place.path("lab/head.key")).unwrap();
    let secrets: Vec<&str> = key
        .lines()
        .filter(|line| line.starts_with("transport = ") || line.starts_with("host = "))
        .take(2)
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert_eq!(secrets.len(), 2);
    let mut texts = vec![("the log".to_owned(), place.log())];
    for role in ["keeper", "serve", "inside"] {
        let process = Path::new("/proc").join(place.process(role).unwrap().to_string());
        for file in ["cmdline", "environ"] {
            // Root reads what the user himself may not.
            let text = fs::read(process.join(file)).unwrap_or_default();
            texts.push((format!("{role} {file}"), String::from_utf8_lossy(&text).into_owned()));
        }
        let limits = fs::read_to_string(process.join("limits")).unwrap_or_default();
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        assert!(core.is_none_or(|line| line.split_whitespace().nth(4) == Some("0")), "{limits}");
    }
    for secret in secrets {
        for (what, text) in &texts {
            assert!(!text.contains(secret), "a secret is in {what}");
        }
    }
}

#[test]
fn an_instance_that_ends_by_itself_is_remembered() {
    let place = Place::new();
    place.join();
    place.ok(&["issue", "a", "--valid", "6s"]);
    let other = format!("{}a", place.instance);
    place.ok(&["join", "lab/master.toml", "--key", "lab/a.key", "--name", &other]);
    until("its certificate's end", || !place.output(&["status", "--on", &other]).status.success());
    let mut told = String::new();
    until("the last words", || {
        let output = place.output(&["status", "--on", &other]);
        told = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.code() == Some(3)
            && told.contains(&format!("instance {other} ended by itself: "))
    });
    assert!(!place.path("run/clusternet").join(&other).exists());
    let told = place.fails(1, &["join", "lab/master.toml", "--key", "lab/a.key", "--name", &other]);
    assert!(told.contains("has expired"), "{told}");
}

#[test]
fn a_daemon_that_hangs_can_still_be_left() {
    let place = Place::new();
    place.join();
    let serve = place.process("serve").unwrap();
    kill(serve, Signal::SIGSTOP).unwrap();
    let told = place.fails(3, &["leave"]);
    assert!(told.contains("no answer within 10 s"), "{told}");
    place.ok(&["leave", "--kill"]);
    place.nothing_is_left();
}
