//! The user this process runs as, and this machine's name.

use std::{io, path::PathBuf, process::Command};

use nix::unistd::{Uid, User, getegid, geteuid, gethostname};

/// One entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell; `/bin/sh` where the entry names none.
    pub shell: PathBuf,
}

/// Effective user and group id of this process.
pub fn ids() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// The account of this process's user.
///
/// # Errors
/// `NotFound`: no entry in the user database; else the system's.
pub fn own() -> io::Result<Account> {
    of_uid(geteuid().as_raw())
}

/// The account with that user id. Asks the C library, then `getent`: a statically linked binary sees only files, while accounts
/// of clusters often come from a directory service.
///
/// # Errors
/// `NotFound`: no entry in the user database; else the system's.
pub fn of_uid(uid: u32) -> io::Result<Account> {
    if let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) {
        return Ok(Account {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
            shell: shell(user.shell),
        });
    }
    let output = Command::new("getent").args(["passwd", &uid.to_string()]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| parse(text.lines().next()?, uid)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("user {uid} has no account"))
    })
}

/// The machine's name without its domain, in lower case.
///
/// # Errors
/// The system's.
pub fn short_hostname() -> io::Result<String> {
    let name = gethostname()?.to_string_lossy().to_lowercase();
    Ok(name.split('.').next().unwrap_or_default().to_owned())
}

fn shell(path: PathBuf) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from("/bin/sh") } else { path }
}

/// One line of passwd(5), if it is that of `uid`.
fn parse(line: &str, uid: u32) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, number, group, _, home, login] = fields.as_slice() else { return None };
    (number.parse() == Ok(uid)).then_some(())?;
    Some(Account {
        name: (*name).to_owned(),
        uid,
        gid: group.parse().ok()?,
        home: PathBuf::from(home),
        shell: shell(PathBuf::from(login)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_user_database_is_read_whole_or_not_at_all() {
        let account = parse("ann:x:4242:100:Ann, Room 1:/home/ann:", 4242).unwrap();
        assert_eq!((account.name.as_str(), account.gid), ("ann", 100));
        assert_eq!(account.shell, PathBuf::from("/bin/sh"));
        for bad in ["", "ann:x:4242", "ann:x:1:100::/:/bin/sh", "ann:x:4242:x::/:/bin/sh"] {
            assert_eq!(parse(bad, 4242), None, "{bad}");
        }
    }

    #[test]
    fn the_first_user_is_root_and_a_missing_one_is_said_to_be() {
        assert_eq!(of_uid(0).unwrap().name, "root");
        assert_eq!(of_uid(3_999_999_999).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!short_hostname().unwrap().contains('.'));
    }
}
