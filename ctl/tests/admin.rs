//! The admin's commands, as people run them: the binary, in directories of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory to work in.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With the network `lab`, whose first master is `head`.
    fn with_network() -> Self {
        let desk = Self::new();
        desk.ok("init lab --master head --endpoint udp://192.0.2.1:51820 --owner alice");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clusternet"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env_clear();
        command.env("HOME", self.0.path()).env("XDG_RUNTIME_DIR", self.0.path());
        // For users whom this machine does not know by name.
        command.env("LOGNAME", "alice");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs it, wants success; standard output.
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, wants this exit status; standard error, paths and all.
    #[track_caller]
    fn fails(&self, line: &str, status: i32) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(status), "{line}: {output:?}");
        assert!(output.stdout.is_empty(), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn ledger(&self) -> Value {
        serde_json::from_str(&self.ok("list --json")).unwrap()
    }

    fn certificates(&self) -> Vec<Value> {
        self.ledger()["certificates"].as_array().unwrap().clone()
    }

    fn inspect(&self, file: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("inspect --json {file}"))).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn init_makes_the_documented_files_with_their_modes() {
    let desk = Desk::with_network();
    let files = [".ledger.lock", "authority.key", "head.key", "ledger.toml", "master.toml"];
    assert_eq!(names(&desk.path("lab")), files);
    assert_eq!(mode(&desk.path("lab")), 0o700);
    for (file, wanted) in [
        ("authority.key", 0o600),
        ("head.key", 0o600),
        ("ledger.toml", 0o600),
        ("master.toml", 0o644),
    ] {
        assert_eq!(mode(&desk.path("lab").join(file)), wanted, "{file}");
    }
    let head = desk.inspect("lab/head.key");
    let certificate = &head["certificate"][0];
    assert_eq!(certificate["ipv4"], "10.99.0.1");
    assert_eq!(certificate["owner"], "alice");
    assert_eq!(certificate["role"], "master");
    assert_eq!(certificate["keys"], "those of this file");
    assert_eq!(certificate["signature"], "verifies under the authority of lab/master.toml");
}

#[test]
fn init_says_what_the_owner_and_the_authority_key_mean_for_the_master() {
    let desk = Desk::new();
    let output = desk.run("init lab --master head --endpoint udp://h:1 --owner alice");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("owner alice: head alone"), "{out}");
    assert!(err.contains("most exposed node") && err.contains("--owner none"), "{err}");
    let output = desk.run("init free --master head --endpoint udp://h:1 --owner none");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!err.contains("--owner none"), "nothing to leave: {err}");
    desk.ok("issue head --dir lab --owner none");
    assert_eq!(desk.inspect("lab/head.key")["certificate"][0]["owner"], "none");
}

#[test]
fn init_refuses_a_directory_that_holds_a_network_or_a_secret() {
    let desk = Desk::with_network();
    let before = desk.read("lab/authority.key");
    let told = desk.fails("init lab --master x --endpoint udp://h:1", 1);
    insta::assert_snapshot!(told.trim(), @"clusternet: lab/ledger.toml: here is a network already; choose another name, or --dir");
    fs::remove_file(desk.path("lab/ledger.toml")).unwrap();
    let told = desk.fails("init lab --master x --endpoint udp://h:1", 1);
    assert!(told.contains("lab/authority.key: is there already, without a ledger"), "{told}");
    assert_eq!(desk.read("lab/authority.key"), before);
}

#[test]
fn a_refused_init_leaves_nothing_behind() {
    let desk = Desk::new();
    for (line, status) in [
        ("init lab --master head --endpoint udp://h:1 --ipv4 10.0.0.0/31", 1),
        ("init lab --master head --endpoint udp://h:1 --ipv4 10.0.0.1/24", 1),
        ("init lab --master authority --endpoint udp://h:1", 1),
        ("init lab --master head --endpoint udp://h:1 --valid yesterday", 2),
        ("init lab --master head --endpoint udp://h:1 --valid 2001-01-01", 2),
        ("init lab --master Head --endpoint udp://h:1", 2),
        ("init lab --master head --endpoint http://h", 2),
        ("init lab --master head", 2),
        ("init localhost --master head --endpoint udp://h:1", 2),
        ("init lab --master head --endpoint udp://h:1 --owner -x", 2),
    ] {
        desk.fails(line, status);
        assert_eq!(names(desk.0.path()), [""; 0], "{line}");
    }
}

#[test]
fn the_directory_is_found_or_the_error_says_how_to_name_it() {
    let desk = Desk::new();
    let told = desk.fails("issue a", 1);
    assert!(told.contains("ledger.toml") && told.contains("--dir"), "{told}");
    desk.ok("init lab --master head --endpoint udp://h:1 --owner none");
    desk.ok("issue a");
    desk.ok("init other --master head --endpoint udp://h:1 --owner none");
    let told = desk.fails("issue b", 1);
    assert!(told.contains("(lab, other): say which with --dir"), "{told}");
    desk.ok("issue b --dir other");
    let inside = desk.command("issue c").current_dir(desk.path("lab")).output().unwrap();
    assert!(inside.status.success(), "{inside:?}");
    assert!(desk.path("lab/c.key").exists() && desk.path("other/b.key").exists());
    let told = desk.fails("list --dir nowhere", 1);
    assert!(told.contains("nowhere: there is no ledger.toml"), "{told}");
}

#[test]
fn issue_gives_each_node_keys_and_addresses_of_its_own() {
    let desk = Desk::with_network();
    let told = desk.ok("issue a");
    assert!(told.contains("owner alice: head, a may run commands on one another"), "{told}");
    desk.ok("issue b --owner none");
    desk.ok("issue c --owner bob --role relay");
    let shown: Vec<_> = desk
        .certificates()
        .iter()
        .map(|c| {
            format!("{} {} {} {} {}", c["name"], c["serial"], c["ipv4"], c["role"], c["owner"])
        })
        .map(|line| line.replace('"', ""))
        .collect();
    assert_eq!(
        shown,
        [
            "head 1 10.99.0.1 master alice",
            "a 2 10.99.0.2 node alice",
            "b 3 10.99.0.3 node null",
            "c 4 10.99.0.4 relay bob"
        ]
    );
    let text = desk.ok("list");
    let line = text.lines().find(|line| line.starts_with("c ")).unwrap();
    assert!(line.contains("relay") && line.ends_with("valid"), "{text}");
}

#[test]
fn issuing_again_renews_the_same_keys() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    let before = desk.inspect("lab/a.key");
    desk.ok("issue a");
    let after = desk.inspect("lab/a.key");
    assert_eq!(before["transport_key"], after["transport_key"]);
    assert_eq!(after["certificate"][0]["serial"], 3);
    assert_eq!(after["certificate"][0]["number"], 2);
    assert_eq!(desk.inspect("lab/a.cert")["certificate"][0]["serial"], 3);

    // Its key file has gone to the node: the certificate alone is renewed.
    fs::remove_file(desk.path("lab/a.key")).unwrap();
    let told = desk.ok("issue a -o renewed.cert");
    assert!(told.contains("renewed a") && told.contains("clusternet revoke a"), "{told}");
    assert!(!desk.path("lab/a.key").exists());
    let renewed = desk.inspect("renewed.cert");
    assert_eq!(renewed["certificate"][0]["transport_key"], before["transport_key"]);

    desk.ok("revoke a");
    let told = desk.ok("issue a");
    assert!(told.starts_with("issued a: node, serial 5, 10.99.0.3"), "{told}");
    assert_ne!(desk.inspect("lab/a.key")["transport_key"], before["transport_key"]);
}

#[test]
fn an_interrupted_issue_is_taken_up_with_the_same_keys() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    // As if it had been killed before the certificate was written into the key file.
    let text = desk.read("lab/a.key");
    let secrets_only = text.split("[certificate]").next().unwrap();
    fs::write(desk.path("lab/a.key"), secrets_only).unwrap();
    let before = desk.inspect("lab/a.key")["transport_key"].clone();
    desk.ok("issue a");
    let after = desk.inspect("lab/a.key");
    assert_eq!(after["transport_key"], before);
    assert_eq!(after["certificate"][0]["number"], 2);
}

#[test]
fn a_request_is_answered_with_a_certificate_and_no_secret_travels() {
    let desk = Desk::with_network();
    fs::create_dir(desk.path("node")).unwrap();
    let node = |line: &str| {
        let output = desk.command(line).current_dir(desk.path("node")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    node("request b");
    assert_eq!(mode(&desk.path("node/b.key")), 0o600);
    assert_eq!(mode(&desk.path("node/b.request")), 0o644);
    desk.ok("issue b --request node/b.request -o node/b.cert");
    let key = desk.inspect("node/b.key");
    assert_eq!(key["certificate"], "none yet: it comes with a .cert beside this file");
    let cert = desk.inspect("node/b.cert");
    assert_eq!(cert["certificate"][0]["transport_key"], key["transport_key"]);
    let secret = desk.read("node/b.key");
    let secret = secret.lines().find_map(|l| l.strip_prefix("transport = ")).unwrap();
    for file in ["node/b.request", "node/b.cert", "lab/ledger.toml"] {
        assert!(!desk.read(file).contains(secret.trim_matches('"')), "{file}");
    }
    // Asking again uses the same secrets, and the answer is a renewal.
    node("request b");
    assert_eq!(desk.inspect("node/b.key")["transport_key"], key["transport_key"]);
    let told = desk.ok("issue b --request node/b.request");
    assert!(told.starts_with("renewed b: node, serial 3, 10.99.0.2"), "{told}");
}

#[test]
fn requests_travel_through_pipes() {
    let desk = Desk::with_network();
    let request = desk.run("request b -o -");
    assert!(request.status.success());
    let mut issue = desk
        .command("issue b --request - -o -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    issue.stdin.take().unwrap().write_all(&request.stdout).unwrap();
    let answer = issue.wait_with_output().unwrap();
    assert!(answer.status.success());
    fs::write(desk.path("b.cert"), &answer.stdout).unwrap();
    assert_eq!(desk.inspect("b.cert")["certificate"][0]["name"], "b");
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let desk = Desk::with_network();
    desk.ok("request b");
    let told = desk.fails("issue c --request b.request", 1);
    assert!(told.contains("the request is for the name `b`, not `c`"), "{told}");
    desk.ok("issue b --request b.request");

    // The same keys under another name.
    let key = desk.read("b.key").replace("name = \"b\"", "name = \"d\"");
    fs::write(desk.path("d.key"), key).unwrap();
    fs::set_permissions(desk.path("d.key"), fs::Permissions::from_mode(0o600)).unwrap();
    desk.ok("request d");
    let told = desk.fails("issue d --request d.request", 1);
    assert!(told.contains("this key belongs to `b` (serial 2)"), "{told}");

    // The same name with other keys.
    fs::create_dir(desk.path("other")).unwrap();
    desk.ok("request b -o other/b.request");
    let told = desk.fails("issue b --request other/b.request", 1);
    assert!(told.contains("`b` has a certificate for other keys (serial 2"), "{told}");

    // A request that somebody has changed.
    let text = desk.read("b.request");
    let start = text.find("signed = \"").unwrap() + 10;
    let mut wrong = text.into_bytes();
    wrong[start] = if wrong[start] == b'A' { b'B' } else { b'A' };
    fs::write(desk.path("wrong.request"), wrong).unwrap();
    let told = desk.fails("issue b --request wrong.request", 1);
    insta::assert_snapshot!(told.trim(), @"clusternet: wrong.request: line 7, field `request.signed`: the signature does not match");
    assert_eq!(desk.certificates().len(), 2, "nothing was signed");
}

#[test]
fn a_second_master_changes_the_master_file() {
    let desk = Desk::with_network();
    let node = "\n[node]\nlisten = 51820\n";
    let text = desk.read("lab/master.toml") + node;
    fs::write(desk.path("lab/master.toml"), text).unwrap();
    let told = desk.fails("issue gate --role master", 2);
    assert!(told.contains("1 to 8 endpoints"), "{told}");
    desk.fails("issue gate --role relay --endpoint udp://gate:1", 2);
    let told = desk.ok("issue gate --role master --endpoint udp://gate:1 --endpoint ssh://me@gate");
    assert!(told.contains("master.toml is version 2"), "{told}");
    let master = desk.inspect("lab/master.toml");
    assert_eq!(master["version"], 2);
    assert_eq!(master["masters"][1]["name"], "gate");
    assert!(desk.read("lab/master.toml").ends_with(node), "the local table stays");
    let told = desk.ok("revoke head");
    assert!(told.contains("version 3"), "{told}");
    assert_eq!(desk.inspect("lab/master.toml")["masters"].as_array().unwrap().len(), 1);
    let output = desk.run("revoke gate");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("no master any more"), "{told}");
}

#[test]
fn revoke_writes_the_list_and_says_who_is_out() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    desk.ok("issue a");
    desk.ok("issue b");
    let told = desk.ok("revoke a");
    assert!(told.starts_with("revoked a: serial 2, 3\n"), "{told}");
    assert!(told.contains("clusternet update revocations"), "{told}");
    assert_eq!(mode(&desk.path("lab/revocations")), 0o644);
    let told = desk.ok("revoke 4");
    assert!(told.starts_with("revoked b: serial 4\n"), "{told}");
    let list = desk.inspect("lab/revocations");
    assert_eq!(list["count"], 3);
    assert_eq!(list["signature"], "verifies under the authority of lab/master.toml");
    let told = desk.ok("revoke a");
    assert!(told.starts_with("revoked already: nothing has changed"), "{told}");
    assert_eq!(desk.inspect("lab/revocations")["count"], 3);
    insta::assert_snapshot!(desk.fails("revoke nobody", 1).trim(), @"clusternet: the ledger has no certificate of `nobody`");
    insta::assert_snapshot!(desk.fails("revoke 99", 1).trim(), @"clusternet: the ledger has no certificate with serial 99");
    desk.fails("revoke", 2);
    let states: Vec<_> =
        desk.certificates().iter().map(|c| c["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["valid", "revoked", "revoked", "revoked"]);
}

#[test]
fn files_lost_to_a_kill_are_written_again_by_the_next_command() {
    let desk = Desk::with_network();
    let old = desk.read("lab/master.toml");
    desk.ok("issue gate --role master --endpoint udp://gate:1");
    desk.ok("issue a");
    desk.ok("revoke a");
    fs::write(desk.path("lab/master.toml"), old).unwrap();
    fs::remove_file(desk.path("lab/revocations")).unwrap();
    fs::write(desk.path("lab/.clusternet-0123.tmp"), "half a fi").unwrap();
    desk.ok("issue b");
    assert_eq!(desk.inspect("lab/master.toml")["version"], 2);
    assert_eq!(desk.inspect("lab/revocations")["count"], 1);
    assert!(!desk.path("lab/.clusternet-0123.tmp").exists());
}

#[test]
fn a_wireguard_member_gets_a_configuration_for_wg_quick() {
    let desk = Desk::with_network();
    let key = "PT4bOr9qvQfM8lt9W+K4luUPHeFN0iG70PsdiXA6H5Y=";
    let output = desk.ok(&format!("issue phone --wireguard {key}"));
    let head = desk.inspect("lab/head.key");
    for line in [
        "[Interface]",
        "PrivateKey = REPLACE-WITH-THE-SECRET-KEY",
        "[Peer]",
        &format!("PublicKey = {}", head["transport_key"].as_str().unwrap()),
        "Endpoint = 192.0.2.1:51820",
        "PersistentKeepalive = 25",
    ] {
        assert!(output.lines().any(|l| l == line), "{line}: {output}");
    }
    let cert = &desk.inspect("lab/phone.cert")["certificate"][0];
    let address = format!(
        "Address = {}/32, {}/128",
        cert["ipv4"].as_str().unwrap(),
        cert["ipv6"].as_str().unwrap()
    );
    assert!(output.contains(&address), "{output}");
    let prefix = desk.ledger()["ipv6"].as_str().unwrap().to_owned();
    assert!(output.contains(&format!("AllowedIPs = 10.99.0.0/16, {prefix}")), "{output}");
    assert_eq!(cert["role"], "wireguard");
    assert_eq!(cert["host_key"], "none");

    desk.fails(&format!("issue phone --wireguard {key} --owner eve"), 2);
    desk.fails(&format!("issue phone --wireguard {key} -o -"), 2);
    desk.fails("issue tablet --wireguard tooshort", 2);
    let low = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let told = desk.fails(&format!("issue tablet --wireguard {low}"), 1);
    assert!(told.contains("low order"), "{told}");
    let told = desk.fails(&format!("issue tablet --wireguard {key}"), 1);
    assert!(told.contains("belongs to `phone`"), "{told}");
}

#[test]
fn without_a_udp_endpoint_there_is_no_gateway_and_nothing_is_signed() {
    let desk = Desk::new();
    desk.ok("init lab --master head --endpoint ssh://head --owner none");
    let key = "PT4bOr9qvQfM8lt9W+K4luUPHeFN0iG70PsdiXA6H5Y=";
    let told = desk.fails(&format!("issue phone --wireguard {key}"), 1);
    assert!(told.contains("head has no udp:// endpoint"), "{told}");
    assert_eq!(desk.certificates().len(), 1);
}

#[test]
fn validity_takes_durations_and_dates() {
    let desk = Desk::with_network();
    let length = |name: &str| -> jiff_seconds::Seconds {
        let cert = &desk.inspect(&format!("lab/{name}.key"))["certificate"][0];
        jiff_seconds::between(
            cert["not_before"].as_str().unwrap(),
            cert["not_after"].as_str().unwrap(),
        )
    };
    // Certificates begin ten minutes before they are issued.
    desk.ok("issue a --valid 600m");
    assert_eq!(length("a"), 36_600);
    desk.ok("issue b --valid 12h");
    assert_eq!(length("b"), 12 * 3600 + 600);
    desk.ok("issue c");
    assert_eq!(length("c"), 30 * 86_400 + 600);
    desk.ok("issue d --valid 2090-12-31");
    let until = |name: &str| {
        let cert = &desk.inspect(&format!("lab/{name}.key"))["certificate"][0];
        cert["not_after"].as_str().unwrap().to_owned()
    };
    assert_eq!(until("d"), "2090-12-31T00:00:00Z");
    desk.ok("issue e --valid 2090-12-31T18:30");
    assert_eq!(until("e"), "2090-12-31T18:30:00Z");
    for wrong in ["0s", "5", "1w", "tomorrow", "2001-01-01", "9999999999d"] {
        let told = desk.fails(&format!("issue f --valid {wrong}"), 2);
        assert!(told.contains("--valid: "), "{told}");
    }
}

#[test]
fn an_expired_certificate_is_listed_as_such_and_its_name_is_free_for_new_keys() {
    let desk = Desk::with_network();
    desk.ok("issue a --valid 1s");
    wait_until("the certificate has expired", || {
        desk.certificates().iter().any(|c| c["state"] == "expired")
    });
    let shown = desk.inspect("lab/a.key");
    assert_eq!(shown["certificate"][0]["validity"], "expired");
    // Within the skew that is forgiven somebody may still accept it: new keys must wait, a renewal need not.
    fs::create_dir(desk.path("other")).unwrap();
    desk.ok("request a -o other/a.request");
    let told = desk.fails("issue a --request other/a.request", 1);
    assert!(told.contains("has a certificate for other keys"), "{told}");
    desk.ok("issue a");
    assert_eq!(desk.inspect("lab/a.key")["certificate"][0]["number"], 2);
}

#[test]
fn twenty_admins_at_once_lose_nothing_and_share_nothing() {
    let desk = Desk::with_network();
    let children: Vec<Child> = (0..20)
        .map(|n| {
            desk.command(&format!("issue node{n} --dir lab"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let certificates = desk.certificates();
    assert_eq!(certificates.len(), 21);
    for field in ["name", "serial", "number", "ipv4", "ipv6", "transport", "host"] {
        let different: HashSet<String> =
            certificates.iter().map(|c| c[field].to_string()).collect();
        assert_eq!(different.len(), 21, "{field}");
    }
    for n in 0..20 {
        let file = desk.inspect(&format!("lab/node{n}.key"));
        let listed = certificates.iter().find(|c| c["name"] == format!("node{n}")).unwrap();
        assert_eq!(file["certificate"][0]["serial"], listed["serial"]);
    }
}

#[test]
fn a_killed_command_leaves_the_ledger_whole() {
    let desk = Desk::with_network();
    for n in 0..40u64 {
        let line = if n % 4 == 3 {
            format!("revoke node{}", n - 1)
        } else {
            format!("issue node{n} --dir lab")
        };
        let mut child =
            desk.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Somewhere in its few milliseconds; where does not matter, only that many places are hit.
        std::thread::sleep(Duration::from_micros(n * 400));
        child.kill().unwrap();
        child.wait().unwrap();
        desk.ok("list");
    }
    // What was interrupted can be done again, and no number has been given out twice.
    for n in 0..40 {
        if n % 4 != 3 {
            desk.ok(&format!("issue node{n} --dir lab"));
            assert_eq!(
                desk.inspect(&format!("lab/node{n}.key"))["certificate"][0]["keys"],
                "those of this file"
            );
        }
    }
    let mut owners = std::collections::HashMap::new();
    for certificate in desk.certificates() {
        let number = certificate["number"].to_string();
        let key = certificate["transport"].to_string();
        assert_eq!(owners.entry(number).or_insert_with(|| key.clone()), &key);
    }
    assert!(!names(&desk.path("lab")).iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn malformed_and_oversize_files_are_refused_by_line_and_field() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    let master = desk.read("lab/master.toml");
    let wrong = |from: &str, to: &str| {
        assert!(master.contains(from), "{from}");
        fs::write(desk.path("wrong.toml"), master.replacen(from, to, 1)).unwrap();
        desk.fails("inspect wrong.toml", 1)
    };
    insta::assert_snapshot!(wrong("name = \"lab\"", "name = \"Lab\"").trim(), @"clusternet: wrong.toml: line 6, field `network.name`: `Lab` is not a name: a lower-case letter, then up to 62 letters, digits or `-`");
    insta::assert_snapshot!(wrong("version = 1", "version = \"1\"").trim(), @r#"clusternet: wrong.toml: line 9, field `network.version`: invalid type: string "1", expected u64"#);
    insta::assert_snapshot!(wrong("number = 1", "numbers = 1").trim(), @"clusternet: wrong.toml: line 15, field `master[0].numbers`: unknown field `numbers`, expected one of `name`, `number`, `transport`, `host`, `endpoints`");
    insta::assert_snapshot!(wrong("udp://192.0.2.1:51820", "udp://192.0.2.1").trim(), @"clusternet: wrong.toml: line 18, field `master[0].endpoints[0]`: `udp://192.0.2.1` is not of the form udp://HOST:PORT");
    insta::assert_snapshot!(wrong("192.0.2.1", "192.0.2.2").trim(), @"clusternet: wrong.toml: line 11, field `network.signature`: the signature does not match");
    insta::assert_snapshot!(wrong("\n[[master]]", "\n[[master]").trim(), @"clusternet: wrong.toml: line 13: unclosed array table, expected `]`");
    fs::write(desk.path("big.toml"), format!("{master}#{}", "x".repeat(300 * 1024))).unwrap();
    insta::assert_snapshot!(desk.fails("inspect big.toml", 1).trim(), @"clusternet: big.toml: longer than the 256 KiB that such a file may have");
    fs::write(desk.path("other.toml"), "[package]\nname = \"x\"\n").unwrap();
    insta::assert_snapshot!(desk.fails("inspect other.toml", 1).trim(), @"clusternet: other.toml: is no file of a network: it has none of the tables that those begin with");
    fs::write(desk.path("binary"), [0xff; 10]).unwrap();
    insta::assert_snapshot!(desk.fails("inspect binary", 1).trim(), @"clusternet: binary: not a text file");
    insta::assert_snapshot!(desk.fails("inspect nowhere", 1).trim(), @"clusternet: nowhere: there is no such file");
}

#[test]
fn a_damaged_ledger_or_master_file_stops_the_authority() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    let ledger = desk.read("lab/ledger.toml");
    fs::write(desk.path("lab/ledger.toml"), ledger.replace("next_serial = 3", "next_serial = 2"))
        .unwrap();
    let told = desk.fails("issue b", 1);
    insta::assert_snapshot!(told.trim(), @"clusternet: lab/ledger.toml: line 8, field `ledger.next_serial`: serial 2 has been given out");
    fs::write(desk.path("lab/ledger.toml"), &ledger[..ledger.len() - 20]).unwrap();
    desk.fails("issue b", 1);
    desk.fails("list", 1);
    fs::write(desk.path("lab/ledger.toml"), &ledger).unwrap();

    let master = desk.read("lab/master.toml");
    fs::write(desk.path("lab/master.toml"), master.replace("ipv4", "ipv5")).unwrap();
    let told = desk.fails("issue b", 1);
    assert!(told.contains("lab/master.toml (repair it") && told.contains("ipv5"), "{told}");
    fs::write(desk.path("lab/master.toml"), master).unwrap();
    desk.ok("issue b");
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    for (file, line) in [
        ("lab/authority.key", "issue b"),
        ("lab/a.key", "issue a"),
        ("lab/a.key", "update lab/a.key"),
    ] {
        fs::set_permissions(desk.path(file), fs::Permissions::from_mode(0o644)).unwrap();
        let told = desk.fails(line, 1);
        assert!(
            told.contains("mode 0644") && told.contains(&format!("chmod 600 {file}")),
            "{told}"
        );
        assert!(desk.ok(&format!("inspect {file}")).contains("chmod 600"));
        fs::set_permissions(desk.path(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn the_authority_key_may_be_elsewhere_and_another_networks_is_refused() {
    let desk = Desk::with_network();
    desk.ok("init other --master head --endpoint udp://h:1 --owner none");
    fs::rename(desk.path("lab/authority.key"), desk.path("offline.key")).unwrap();
    let told = desk.fails("issue a --dir lab", 1);
    assert!(
        told.contains("lab/authority.key: there is no such file, and nothing is signed"),
        "{told}"
    );
    desk.ok("list --dir lab");
    fs::copy(desk.path("other/authority.key"), desk.path("lab/authority.key")).unwrap();
    let told = desk.fails("issue a --dir lab", 1);
    assert!(told.contains("they belong to different networks"), "{told}");
    fs::remove_file(desk.path("lab/authority.key")).unwrap();
    std::os::unix::fs::symlink("../offline.key", desk.path("lab/authority.key")).unwrap();
    desk.ok("issue a --dir lab");
}

#[test]
fn inspect_tells_a_certificate_of_another_network() {
    let desk = Desk::with_network();
    desk.ok("init other --master head --endpoint udp://h:1 --owner none");
    fs::copy(desk.path("other/head.key"), desk.path("lab/foreign.key")).unwrap();
    let shown = desk.inspect("lab/foreign.key");
    let told = shown["certificate"][0]["signature"].as_str().unwrap();
    assert_eq!(told, "verifies, but under ANOTHER authority than lab/master.toml's");
}

#[test]
fn no_command_shows_a_secret() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    desk.ok("request b");
    let mut secrets = Vec::new();
    for (file, fields) in [
        ("lab/authority.key", &["secret = "][..]),
        ("lab/head.key", &["transport = ", "host = "]),
        ("lab/a.key", &["transport = ", "host = "]),
        ("b.key", &["transport = ", "host = "]),
    ] {
        for line in desk.read(file).lines() {
            secrets.extend(
                fields
                    .iter()
                    .filter_map(|f| line.strip_prefix(f))
                    .map(|s| s.trim_matches('"').to_owned()),
            );
        }
    }
    assert_eq!(secrets.len(), 7);
    let mut shown = String::new();
    for file in names(&desk.path("lab")).iter().filter(|name| !name.starts_with('.')) {
        shown += &desk.ok(&format!("inspect lab/{file}"));
        shown += &desk.ok(&format!("inspect -vv --json lab/{file}"));
    }
    shown += &desk.ok("inspect b.key");
    shown += &desk.ok("list --json -vv");
    shown += &desk.ok("issue a -vv");
    // A secret in the wrong place of a malformed file.
    let text = desk.read("b.key").replace("host = \"", "host = ");
    fs::write(desk.path("wrong.key"), text).unwrap();
    fs::set_permissions(desk.path("wrong.key"), fs::Permissions::from_mode(0o600)).unwrap();
    shown += &desk.fails("inspect wrong.key", 1);
    for secret in secrets {
        assert!(!shown.contains(&secret[2..20]), "{secret}");
    }
}

#[test]
fn nodes_cannot_take_the_authoritys_name() {
    let desk = Desk::with_network();
    for line in ["issue authority", "request authority"] {
        let told = desk.fails(line, 1);
        assert!(told.contains("authority.key is the network's own secret"), "{told}");
    }
}

#[test]
fn update_without_a_daemon_says_so_with_status_3() {
    let desk = Desk::with_network();
    desk.ok("issue a");
    desk.ok("revoke a");
    for file in ["lab/revocations", "lab/master.toml", "lab/a.key"] {
        let told = desk.fails(&format!("update {file}"), 3);
        assert!(told.contains("clusternet join"), "{told}");
    }
    for (file, why) in [
        ("lab/authority.key", "is an authority's secret"),
        ("lab/ledger.toml", "is a ledger"),
        ("nowhere", "no such file"),
    ] {
        let told = desk.fails(&format!("update {file}"), 1);
        assert!(told.contains(why), "{told}");
    }
}

/// Answers as a daemon of one network would, and remembers the files it was given.
struct FakeDaemon {
    given: mpsc::Receiver<String>,
}

impl FakeDaemon {
    /// `answer` is the whole reply to an update.
    fn start(desk: &Desk, instance: &str, authority: &str, answer: Value) -> Self {
        let directory = desk.path("clusternet").join(instance);
        fs::create_dir_all(&directory).unwrap();
        for private in [directory.as_path(), directory.parent().unwrap()] {
            fs::set_permissions(private, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let listener = UnixListener::bind(directory.join("control")).unwrap();
        let hello = json!({
            "reply": "hello", "version": "0", "keeper": 1, "network": "lab", "instance": instance,
            "network_id": network_id(authority),
        });
        let (give, given) = mpsc::channel();
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                let Ok(request) = serde_json::from_str::<Value>(&line) else { continue };
                let reply = if request["request"] == "update" {
                    give.send(request["text"].as_str().unwrap().to_owned()).unwrap();
                    &answer
                } else {
                    &hello
                };
                let _ = stream.write_all(format!("{reply}\n").as_bytes());
            }
        });
        Self { given }
    }

    fn given(&self) -> Vec<String> {
        self.given.try_iter().collect()
    }
}

fn network_id(authority: &str) -> String {
    let authority = authority.parse().unwrap();
    clusternet::words::id::NetworkId::of(&authority).0.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn what_is_signed_is_handed_to_the_running_node_of_the_network_alone() {
    let desk = Desk::with_network();
    desk.ok("init other --master head --endpoint udp://h:1 --owner none");
    let authority = desk.inspect("lab/master.toml")["authority"].as_str().unwrap().to_owned();
    let foreign = desk.inspect("other/master.toml")["authority"].as_str().unwrap().to_owned();
    let taken = json!({ "reply": "update", "taken": "1 revocation", "confirmed": 2, "nodes": 3 });
    let daemon = FakeDaemon::start(&desk, "night", &authority, taken.clone());
    let stranger = FakeDaemon::start(&desk, "day", &foreign, taken);
    desk.ok("issue a --dir lab");
    assert_eq!(daemon.given(), [""; 0], "a new node is news to nobody before it joins");
    let told = desk.ok("revoke a --dir lab");
    let wanted = "instance night has taken 1 revocation; confirmed by 2 of 3 nodes";
    assert!(told.contains(wanted), "{told}");
    assert_eq!(daemon.given(), [desk.read("lab/revocations")]);
    desk.ok("issue gate --dir lab --role master --endpoint udp://gate:1");
    assert_eq!(daemon.given(), [desk.read("lab/master.toml")]);
    let told = desk.ok("issue head --dir lab");
    assert!(told.contains("handed over already:\n"), "{told}");
    assert_eq!(daemon.given(), [desk.read("lab/head.cert")]);
    desk.ok("issue phone --dir lab --wireguard PT4bOr9qvQfM8lt9W+K4luUPHeFN0iG70PsdiXA6H5Y=");
    assert_eq!(daemon.given(), [desk.read("lab/phone.cert")]);
    desk.ok("issue head --dir lab");
    assert_eq!(daemon.given(), [desk.read("lab/head.cert")]);

    for file in ["lab/revocations", "lab/master.toml", "lab/phone.cert"] {
        assert!(desk.ok(&format!("update {file}")).contains(wanted), "{file}");
        assert_eq!(daemon.given(), [desk.read(file)]);
    }
    desk.ok("update lab/head.key");
    assert_eq!(daemon.given(), [desk.read("lab/head.cert")], "and no secret");
    assert_eq!(stranger.given(), [""; 0]);
    desk.ok("update lab/revocations --on day");
    assert_eq!((stranger.given().len(), daemon.given().len()), (1, 0));
    desk.fails("update lab/revocations --on evening", 3);
}

#[test]
fn a_daemon_that_refuses_is_told_about() {
    let desk = Desk::with_network();
    let authority = desk.inspect("lab/master.toml")["authority"].as_str().unwrap().to_owned();
    let no = json!({ "reply": "error", "message": "this list is older than the one known" });
    let _daemon = FakeDaemon::start(&desk, "lab", &authority, no);
    desk.ok("issue a --dir lab");
    let told = desk.ok("revoke a --dir lab");
    assert!(told.contains("revoked a: serial 2"), "what is signed is signed: {told}");
    let wanted = "instance lab did not take it: this list is older than the one known";
    assert!(told.contains(wanted), "{told}");
    insta::assert_snapshot!(desk.fails("update lab/revocations", 1).trim(), @"clusternet: instance lab: this list is older than the one known");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let desk = Desk::with_network();
    for line in ["list", "inspect lab/ledger.toml", "completions bash"] {
        let mut child =
            desk.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let desk = Desk::new();
    for command in ["init", "issue", "request", "revoke", "update", "list", "inspect"] {
        let help = desk.ok(&format!("{command} --help"));
        assert!(
            help.contains("Example") && help.contains(&format!("clusternet {command}")),
            "{help}"
        );
    }
    let script = desk.ok("completions bash");
    assert!(script.contains("inspect"));
    fs::create_dir(desk.path("man")).unwrap();
    desk.ok("man man");
    assert!(names(&desk.path("man")).contains(&"clusternet-issue.1".to_owned()));
    desk.fails("", 2);
    desk.fails("nonsense", 2);
}

/// Polls until `done`, for at most ten seconds.
#[track_caller]
fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..200 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: not within 10 s");
}

mod jiff_seconds {
    //! Seconds between two dates as the files write them (RFC 3339, UTC, to the second).

    pub(crate) type Seconds = i64;

    fn parse(text: &str) -> Seconds {
        let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
        let (y, m, d) = (number(0..4), number(5..7), number(8..10));
        // Days from civil, Howard Hinnant.
        let y = if m <= 2 { y - 1 } else { y };
        let era_year = y.rem_euclid(400);
        let day_of_year = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
        let days = y.div_euclid(400) * 146_097 + era_year * 365 + era_year / 4 - era_year / 100
            + day_of_year;
        days * 86_400 + number(11..13) * 3600 + number(14..16) * 60 + number(17..19)
    }

    pub(crate) fn between(from: &str, to: &str) -> Seconds {
        parse(to) - parse(from)
    }
}
