//! ssh in the LAN: by name, without a prompt, a key or a question, for nodes of one owner.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::clock::wait_until;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{BOB, Family, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::programs::need;
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    Suite::new()
        .group("v4", || Network::up(Family::V4, Tun::Open), everything())
        .group(
            "v6",
            || Network::up(Family::V6, Tun::Open),
            vec![
                Check::new("everybody_executes_on_everybody", everybody),
                Check::new("files_travel_with_scp_sftp_and_rsync", files),
            ],
        )
        .main()
}

fn everything() -> Vec<Check<Network>> {
    vec![
        Check::new("everybody_executes_on_everybody", everybody),
        Check::new("clusternet_ssh_does_it_from_outside", from_outside),
        Check::new("the_exit_status_comes_back", exit_status),
        Check::new("streams_stay_apart_and_half_close_is_carried", streams),
        Check::new("words_are_joined_and_read_by_the_login_shell", words),
        Check::new("options_may_stand_before_and_after_the_host", options),
        Check::new("the_environment_is_a_logins", environment),
        Check::new("a_shell_has_a_terminal_of_the_right_size", terminal),
        Check::new("an_interrupt_at_the_terminal_reaches_the_command", interrupt),
        Check::new("a_command_whose_client_dies_is_hung_up", hang_up),
        Check::new("a_megabyte_comes_through_whole", megabyte),
        Check::new("files_travel_with_scp_sftp_and_rsync", files),
        Check::new("ports_are_forwarded_both_ways", forwards),
        Check::new("agents_and_x11_are_not_forwarded", no_agent),
        Check::new("a_background_child_does_not_hold_the_session", background_child),
        Check::new("another_owner_is_refused_and_told_why", other_owner),
        Check::new("programs_outside_find_no_ssh_server", no_server_outside),
    ]
}

fn everybody(network: &mut Network) -> Result<()> {
    for from in ["head", "a", "b", "c"] {
        for to in ["head", "a", "b", "c"] {
            for name in [to.to_owned(), format!("{to}.lab")] {
                let outcome = network.inside(from, &format!("ssh {name} hostname")).run()?;
                ensure!(outcome.stdout == format!("{to}\n"), "{outcome}\n{}", network.log(to));
                ensure!(outcome.stderr.is_empty(), "it is not silent: {outcome}");
            }
        }
    }
    let by_address = network.overlay("b", Family::V6)?;
    let outcome = network.inside("a", &format!("ssh {by_address} hostname")).run()?;
    ensure!(outcome.stdout == "b\n", "{outcome}");
    Ok(())
}

fn from_outside(network: &mut Network) -> Result<()> {
    let said = network.lab.on("a").sh("clusternet ssh b hostname").ok()?;
    ensure!(said == "b\n", "{said}");
    network.lab.on("a").sh("clusternet ssh b exit 5").fails(5)?;
    let unknown = network.lab.on("a").sh("clusternet ssh nobody true").run()?;
    ensure!(!unknown.status.success() && unknown.stderr.contains("nobody"), "{unknown}");
    Ok(())
}

fn exit_status(network: &mut Network) -> Result<()> {
    for code in [0, 1, 7, 254] {
        network.inside("a", &format!("ssh b exit {code}")).fails(code)?;
    }
    network.inside("a", "ssh b /no/such/program").fails(127)?;
    // OpenSSH says 255 for a command that a signal ended.
    network.inside("a", "ssh b 'kill -KILL $$'").fails(255)?;
    Ok(())
}

fn streams(network: &mut Network) -> Result<()> {
    let outcome =
        network.inside("a", "ssh b 'cat; echo done; echo oh >&2'").stdin("input\n").run()?;
    ensure!(outcome.stdout == "input\ndone\n" && outcome.stderr == "oh\n", "{outcome}");
    // What PVM does: one byte is read, then the command goes on without its input.
    let outcome = network.inside("a", "ssh -n b 'head -c1; echo after'").run()?;
    ensure!(outcome.stdout == "after\n", "{outcome}");
    Ok(())
}

fn words(network: &mut Network) -> Result<()> {
    let outcome = network.inside("a", "ssh b echo '$HOME' '\"a  b\"' ';' hostname").run()?;
    ensure!(outcome.stdout == "/home/ann a  b\nb\n", "{outcome}");
    let outcome =
        network.inside("a", "ssh b 'for i in 1 2; do echo $i; done | tail -n1; pwd'").run()?;
    ensure!(outcome.stdout == "2\n/home/ann\n", "{outcome}");
    Ok(())
}

fn options(network: &mut Network) -> Result<()> {
    for line in [
        "-x b hostname",
        "b -n hostname",
        "-q -l ann b hostname",
        "ann@b hostname",
        "-o BatchMode=yes b hostname",
    ] {
        let outcome = network.inside("a", &format!("ssh {line}")).run()?;
        ensure!(outcome.stdout == "b\n" && outcome.stderr.is_empty(), "{outcome}");
    }
    Ok(())
}

fn environment(network: &mut Network) -> Result<()> {
    let said = network.inside("a", "ssh b env").env("SECRET", "x").env("LC_TIME", "C").ok()?;
    for line in [
        "HOME=/home/ann",
        "USER=ann",
        "LOGNAME=ann",
        "SHELL=/bin/bash",
        "PVM_TMP=",
        "OMPI_MCA_plm_rsh_agent=",
        "LC_TIME=C",
    ] {
        ensure!(said.lines().any(|have| have.starts_with(line)), "no {line} in {said}");
    }
    ensure!(!said.contains("SECRET"), "{said}");
    let own = network.inside_sh("b", "echo $PVM_TMP").ok()?;
    ensure!(
        said.contains(&format!("PVM_TMP={own}")),
        "run has another PVM_TMP than ssh: {own}\n{said}"
    );
    let ssh = network.inside("a", "ssh b command -v ssh").ok()?;
    ensure!(ssh != "/usr/bin/ssh\n", "sessions find the system's ssh: {ssh}");
    let hop = network.inside("a", "ssh b ssh c hostname").ok()?;
    ensure!(hop == "c\n", "{hop}");
    Ok(())
}

fn terminal(network: &mut Network) -> Result<()> {
    let mut session = network
        .lab
        .on("a")
        .sh("script -qec \"clusternet run -- bash -c 'stty rows 33 cols 99; ssh b'\" /dev/null")
        .spawn()?;
    session.write("echo $((6*7)) on $(hostname); stty size; tty\n")?;
    session.wait_for("42 on b", 30)?;
    session.wait_for("33 99", 30)?;
    session.wait_for("/dev/pts/", 30)?;
    session.write("exit 6\n")?;
    let outcome = session.wait(Duration::from_secs(30))?;
    ensure!(outcome.status.code() == Some(6), "{outcome}");
    let forced = network.inside("a", "ssh -tt b tty").run()?;
    ensure!(forced.stdout.contains("/dev/pts/"), "{forced}");
    let none = network.inside("a", "ssh b tty").run()?;
    ensure!(none.stdout.contains("not a tty"), "{none}");
    Ok(())
}

fn interrupt(network: &mut Network) -> Result<()> {
    let mut session = network
        .lab
        .on("a")
        .sh("script -qec \"clusternet run -- ssh -t b 'echo ready; sleep 100; echo not reached'\" /dev/null")
        .spawn()?;
    session.wait_for("ready", 30)?;
    session.write("\u{3}")?;
    let outcome = session.wait(Duration::from_secs(30))?;
    ensure!(!outcome.stdout.contains("not reached"), "{outcome}");
    Ok(())
}

fn runs(network: &Network, node: &str, command: &str) -> Result<bool> {
    Ok(network.lab.on(node).processes()?.iter().any(|line| line.ends_with(command)))
}

fn hang_up(network: &mut Network) -> Result<()> {
    let session = network
        .lab
        .on("a")
        .sh("exec clusternet run -- ssh -tt b 'echo ready; exec sleep 98765'")
        .spawn()?;
    let mut session = session;
    session.wait_for("ready", 30)?;
    ensure!(runs(network, "b", " sleep 98765")?, "the command does not run");
    session.signal(Signal::SIGKILL)?;
    wait_until("the command to end with its client", SOON, || {
        Ok((!runs(network, "b", " sleep 98765")?).then_some(()))
    })
}

fn megabyte(network: &mut Network) -> Result<()> {
    let script =
        "head -c 8000000 /dev/urandom > big && ssh b 'cat > big; sha256sum < big' < big > there &&
                  sha256sum < big | cmp - there && ssh b 'cat big' | cmp - big";
    network.inside_sh("a", script).limit(120).ok()?;
    Ok(())
}

fn files(network: &mut Network) -> Result<()> {
    need(&["scp", "sftp", "rsync"])?;
    let script = "set -e
        mkdir -p tree/sub && head -c 300000 /dev/urandom > tree/one && echo two > tree/sub/two
        scp -q tree/one b:copied && scp -q b:copied back && cmp tree/one back
        scp -q -r tree b:copied-tree && ssh b cat copied-tree/sub/two
        printf 'put tree/one by-sftp\\nls -l by-sftp\\nget by-sftp from-sftp\\nrename by-sftp renamed\\nrm renamed\\n' | sftp -q -b - b
        cmp tree/one from-sftp
        rsync -a tree/ b:synced && echo more >> tree/sub/two && rsync -a tree/ b:synced
        rsync -a b:synced/ tree-back && diff -r tree tree-back && echo all the same";
    let said = network.inside_sh("a", script).limit(120).ok()?;
    ensure!(said.starts_with("two\n") && said.ends_with("all the same\n"), "{said}");
    Ok(())
}

fn forwards(network: &mut Network) -> Result<()> {
    let mut server = network
        .inside_sh("c", "cd /run/lab && exec python3 -u -m http.server --bind 127.0.0.1 8100")
        .spawn()?;
    server.wait_for("Serving", 20)?;
    let fetch = |port: u16| {
        format!(
            "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:{port}/\", timeout=5).status)'"
        )
    };
    let local = network
        .inside("a", "ssh -o ExitOnForwardFailure=yes -N -L 8101:127.0.0.1:8100 c")
        .spawn()?;
    wait_until("the local forward", SOON, || {
        Ok((network.inside_sh("a", &fetch(8101)).run()?.stdout == "200\n").then_some(()))
    })?;
    drop(local);
    let remote = network
        .inside("c", "ssh -o ExitOnForwardFailure=yes -N -R 8102:127.0.0.1:8100 b")
        .spawn()?;
    wait_until("the remote forward", SOON, || {
        Ok((network.inside_sh("b", &fetch(8102)).run()?.stdout == "200\n").then_some(()))
    })?;
    drop(remote);
    Ok(())
}

fn no_agent(network: &mut Network) -> Result<()> {
    let said = network
        .inside("a", "ssh -A -X b 'echo agent=$SSH_AUTH_SOCK display=$DISPLAY'")
        .env("DISPLAY", ":9")
        .run()?;
    ensure!(said.stdout == "agent= display=\n", "{said}");
    Ok(())
}

fn background_child(network: &mut Network) -> Result<()> {
    let said = network
        .inside("a", "ssh b 'sleep 55 < /dev/null > /dev/null 2>&1 & echo started'")
        .limit(20)
        .ok()?;
    ensure!(said == "started\n", "{said}");
    network.lab.on("b").sh("pkill -f 'sleep 55'").run()?;
    Ok(())
}

/// On c, Bob joins with a certificate that names him as owner.
fn other_owner(network: &mut Network) -> Result<()> {
    network.issue("guest", "--owner bob")?;
    network.carry_for(BOB, "guest", "c")?;
    let machine = network.lab.on("c");
    machine.sh("clusternet join lab/master.toml").user(BOB).ok()?;
    let bob = |script: &str| machine.sh(script).user(BOB).limit(60);
    bob("clusternet run -- ping -c2 -W20 a").ok()?;
    let refused = bob("clusternet run -- ssh a true").fails(255)?;
    ensure!(refused.contains("owner"), "it does not say why: {refused}");
    let refused = network.inside("a", "ssh guest true").fails(255)?;
    ensure!(refused.contains("owner"), "it does not say why: {refused}");
    for line in
        ["scp -q /etc/hostname a:x", "ssh -N -o ExitOnForwardFailure=yes -L 8200:127.0.0.1:22 a"]
    {
        bob(&format!("clusternet run -- {line}")).fails(255)?;
    }
    bob("clusternet leave").ok()?;
    Ok(())
}

fn no_server_outside(network: &mut Network) -> Result<()> {
    // Nothing of ours listens for TCP on the host's own network.
    let said = network.lab.on("a").sh("ss -Hltn").root().ok()?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}
