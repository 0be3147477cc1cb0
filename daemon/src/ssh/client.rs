//! The client's side: what `run`, `shell` and every ssh session get so that plain `ssh NODE` works, without prompt, key or question.
//!
//! One directory holds everything ([`write`]):
//!
//! | file | what |
//! |---|---|
//! | `ssh_config` | the whole configuration; `-F` makes it the only one that is read |
//! | `known_hosts` | every node's names and addresses with its host key |
//! | `bin/ssh`, `bin/scp`, `bin/sftp` | the system's programs of that name with `-F ssh_config`; [`environment`] puts `bin` in front on PATH |
//!
//! A login shell's start-up files may reset PATH (Debian's `/etc/profile` does), and some programs call `/usr/bin/ssh` by its path.
//! So whoever makes a private mount namespace also binds `ssh_config` over `/etc/ssh/ssh_config` where that exists: then the
//! system's `ssh` reads it under any name, below the user's own `~/.ssh/config`. It has no `Include`: files of the host's root
//! belong to nobody inside, and ssh refuses to include such.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use clusternet::words::key::VerifyKey;

/// The port that ssh answers on inside the LAN.
pub const PORT: u16 = 22;

/// The programs that get a front of their own: `scp` and `sftp` call `/usr/bin/ssh` by its path, not through PATH.
const PROGRAMS: [&str; 3] = ["ssh", "scp", "sftp"];

/// A node as the client must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKey {
    /// `NAME`, `NAME.NETWORK`.
    pub names: Vec<String>,
    /// Its overlay addresses, of both families.
    pub addresses: Vec<IpAddr>,
    /// Its host key.
    pub key: VerifyKey,
}

/// Where the programs' fronts are, in the directory given to [`write`].
pub fn bin_directory(directory: &Path) -> PathBuf {
    directory.join("bin")
}

/// The configuration file in the directory given to [`write`].
pub fn configuration_file(directory: &Path) -> PathBuf {
    directory.join("ssh_config")
}

/// Writes or replaces everything under `directory`, each file in one step. `port` is [`PORT`] but in tests.
///
/// # Errors
/// The system's, with the file named; `InvalidInput` for a path that OpenSSH's configuration cannot express (a quote, a line break,
/// a percent sign or a dollar sign in it).
pub fn write(directory: &Path, nodes: &[NodeKey], port: u16) -> io::Result<()> {
    let bin = bin_directory(directory);
    fs::create_dir_all(&bin).map_err(|error| at(&bin, &error))?;
    let text = directory.to_str().filter(|text| !text.contains(['"', '\'', '\n', '%', '$', '\\']));
    let Some(text) = text else {
        let error = io::Error::new(
            io::ErrorKind::InvalidInput,
            "ssh cannot be told of a directory with such a name",
        );
        return Err(at(directory, &error));
    };
    replace(&directory.join("known_hosts"), known_hosts(nodes, port).as_bytes(), 0o644)?;
    replace(&configuration_file(directory), configuration(text, port).as_bytes(), 0o644)?;
    for program in PROGRAMS {
        replace(&bin.join(program), front(text, program).as_bytes(), 0o755)?;
    }
    Ok(())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A reader sees the old file or the new one. What is the same already is left alone.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".new.{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&fresh)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        drop(file);
        fs::rename(&fresh, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&fresh);
        at(path, &error)
    })
}

fn known_hosts(nodes: &[NodeKey], port: u16) -> String {
    let mut text = String::new();
    for node in nodes {
        let hosts = node.names.iter().cloned().chain(node.addresses.iter().map(IpAddr::to_string));
        let hosts: Vec<_> = hosts
            .map(|host| if port == PORT { host } else { format!("[{host}]:{port}") })
            .collect();
        let _ = writeln!(text, "{} {}", hosts.join(","), public_key(&node.key));
    }
    text
}

/// `ssh-ed25519 BASE64` as known_hosts has it (RFC 8709).
fn public_key(key: &VerifyKey) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut blob = Vec::with_capacity(51);
    for part in [&b"ssh-ed25519"[..], &key.0] {
        blob.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        blob.extend_from_slice(part);
    }
    format!("ssh-ed25519 {}", STANDARD.encode(blob))
}

/// Nothing of it asks anything, reads a key, or says a word of its own. Log level INFO, because below it a refusal's reason (the
/// banner) is not shown; for commands INFO is silent otherwise.
fn configuration(directory: &str, port: u16) -> String {
    format!(
        r#"# Written by clusternet, replaced when the network changes. The overlay address proves who a node is.
Host *
    Port {port}
    UserKnownHostsFile "{directory}/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    HostKeyAlgorithms ssh-ed25519
    CheckHostIP no
    UpdateHostKeys no
    VerifyHostKeyDNS no
    CanonicalizeHostname no
    PreferredAuthentications none
    PubkeyAuthentication no
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    GSSAPIAuthentication no
    HostbasedAuthentication no
    IdentityAgent none
    IdentityFile none
    ForwardAgent no
    ForwardX11 no
    ControlMaster no
    ControlPath none
    ProxyCommand none
    PermitLocalCommand no
    TCPKeepAlive yes
    Compression no
    Ciphers aes256-gcm@openssh.com,chacha20-poly1305@openssh.com
    SendEnv LANG LC_*
    LogLevel INFO
"#
    )
}

/// Runs the next program of the same name on PATH. Next after this directory's last place, so that fronts of several networks
/// never call each other in a circle.
fn front(directory: &str, program: &str) -> String {
    format!(
        r#"#!/bin/sh
# Written by clusternet: the system's {program}, told of the network's nodes.
here='{directory}/bin'
rest=$PATH
case ":$PATH:" in *":$here:"*) rest=:$PATH; rest=${{rest##*":$here"}} ;; esac
set -f
IFS=:
for place in $rest; do
    if [ -n "$place" ] && [ -x "$place/{program}" ] && [ ! -d "$place/{program}" ] && [ "$place" != "$here" ]; then
        unset IFS rest
        exec "$place/{program}" -F '{directory}/ssh_config' "$@"
    fi
done
echo "clusternet: no {program} on PATH: install OpenSSH's client (Debian, Ubuntu: openssh-client; Fedora, RHEL: openssh-clients)" >&2
exit 127
"#
    )
}

/// What `run` and ssh sessions both set, so that PVM and the MPIs start their daemons through our `ssh` with no option typed.
///
/// `bin` is [`bin_directory`]; `pvm_tmp` a directory of this instance alone, for PVM's sockets and files; `inherited` looks up a
/// variable of the environment that this is added to. What the user has set for PVM_PATH, a preference, stays.
///
/// Each launcher finds a bare `ssh` through PATH, so the value is the same on every node wherever the runtime directory is:
/// Open MPI's tree spawn needs that.
pub fn environment(
    bin: &Path,
    pvm_tmp: &Path,
    inherited: impl Fn(&str) -> Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> =
        vec![("PATH".into(), search_path(bin, inherited("PATH").as_deref()))];
    variables.push(("PVM_TMP".into(), pvm_tmp.into()));
    let fixed = [
        ("PVM_RSH", "ssh"),
        // Open MPI up to 4, and from 5 on. Exclusions: inside a batch job they would start through the scheduler, outside the LAN.
        ("OMPI_MCA_plm_rsh_agent", "ssh"),
        ("OMPI_MCA_plm", "^slurm,tm,lsf,alps"),
        ("PRTE_MCA_plm_ssh_agent", "ssh"),
        ("PRTE_MCA_plm", "^slurm,tm,lsf,pals"),
        ("HYDRA_LAUNCHER", "ssh"),
        ("HYDRA_LAUNCHER_EXEC", "ssh"),
        ("LAMRSH", "ssh"),
        ("LAM_MPI_SSI_boot", "rsh"),
    ];
    variables.extend(fixed.map(|(name, value)| (name.into(), value.into())));
    if inherited("PVM_PATH").is_none() {
        // PVM's own default, then where distributions put the group server and the examples.
        let home = "$HOME/pvm3/bin/$PVM_ARCH:$PVM_ROOT/bin/$PVM_ARCH:/usr/bin";
        variables.push(("PVM_PATH".into(), home.into()));
    }
    variables
}

/// `bin`, then `inherited` without an earlier `bin`, then what is missing of the usual places.
fn search_path(bin: &Path, inherited: Option<&OsStr>) -> OsString {
    let mut places = vec![bin.to_owned()];
    let usual = ["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from);
    for place in std::env::split_paths(inherited.unwrap_or_default()).chain(usual) {
        if !place.as_os_str().is_empty() && !places.contains(&place) {
            places.push(place);
        }
    }
    std::env::join_paths(&places).unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_programs_are_in_front_and_the_usual_places_are_there() {
        let path = |inherited: &str| search_path(Path::new("/r/bin"), Some(OsStr::new(inherited)));
        assert_eq!(path(""), "/r/bin:/usr/local/bin:/usr/bin:/bin");
        assert_eq!(
            path("/opt/mpi/bin:/r/bin:/usr/bin"),
            "/r/bin:/opt/mpi/bin:/usr/bin:/usr/local/bin:/bin"
        );
    }

    #[test]
    fn a_choice_of_pvm_path_stays() {
        let of = |inherited: Option<&str>| {
            environment(Path::new("/r/bin"), Path::new("/r/pvm"), |name| {
                inherited.filter(|_| name == "PVM_PATH").map(OsString::from)
            })
        };
        assert!(of(None).iter().any(|(name, _)| name == "PVM_PATH"));
        assert!(!of(Some("/my/programs")).iter().any(|(name, _)| name == "PVM_PATH"));
    }

    #[test]
    fn a_directory_that_ssh_cannot_be_told_of_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let error = write(&scratch.path().join("a\"b"), &[], PORT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
