//! scp, sftp and rsync.

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
};

use crate::harness::{Server, finish, have};

#[track_caller]
fn well(output: &std::process::Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn scp_copies_there_and_back() {
    if !have("scp") {
        return;
    }
    let server = Server::start();
    let here = server.scratch.path().join("here");
    fs::create_dir_all(here.join("tree/deep")).unwrap();
    let data: Vec<u8> =
        (0..5_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(here.join("tree/large"), &data).unwrap();
    fs::write(here.join("tree/deep/small"), "x").unwrap();
    fs::set_permissions(here.join("tree/deep/small"), fs::Permissions::from_mode(0o751)).unwrap();
    let mut command = server.program("scp");
    command.args(["-r", "-p", "-q"]).arg(here.join("tree")).arg("127.0.0.1:copy");
    well(&finish(command, b""));
    assert!(fs::read(server.home().join("copy/large")).unwrap() == data);
    let small = fs::metadata(server.home().join("copy/deep/small")).unwrap();
    assert_eq!(small.permissions().mode() & 0o777, 0o751);
    assert_eq!(small.modified().unwrap(), {
        let made = fs::metadata(here.join("tree/deep/small")).unwrap().modified().unwrap();
        let whole = made.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(whole)
    });

    let mut command = server.program("scp");
    command.args(["-r", "-q", "127.0.0.1:copy"]).arg(here.join("back"));
    well(&finish(command, b""));
    assert!(fs::read(here.join("back/large")).unwrap() == data);
    // The old protocol too: `scp` at the other end, by exec.
    let mut command = server.program("scp");
    command.args(["-O", "-q", "127.0.0.1:copy/large"]).arg(here.join("old"));
    well(&finish(command, b""));
    assert!(fs::read(here.join("old")).unwrap() == data);

    let mut command = server.program("scp");
    command.args(["-q", "127.0.0.1:nothing"]).arg(here.join("nothing"));
    let output = finish(command, b"");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("No such file"));
}

#[test]
fn sftp_does_all_that_its_commands_ask() {
    if !have("sftp") {
        return;
    }
    let server = Server::start();
    let home = server.home();
    let local = server.scratch.path().join("local");
    fs::write(&local, "content\n").unwrap();
    let batch = format!(
        "pwd\nmkdir d\ncd d\nput {local} one\nput {local} two\nrename one uno\nln -s uno link\nln uno hard\nchmod 600 uno\n\
         df\nls -la\nget link {local}.back\nrm two\nmkdir e\nrmdir e\nbye\n",
        local = local.display()
    );
    let mut command = server.program("sftp");
    command.args(["-b", "-", "127.0.0.1"]);
    let text = well(&finish(command, batch.as_bytes()));
    assert!(
        text.contains(&format!(
            "Remote working directory: {}",
            fs::canonicalize(&home).unwrap().display()
        )),
        "{text}"
    );
    assert!(text.contains("lrwxrwxrwx"), "{text}");
    assert!(text.contains("-rw-------"), "{text}");
    assert_eq!(fs::read_to_string(format!("{}.back", local.display())).unwrap(), "content\n");
    let mut names: Vec<_> =
        fs::read_dir(home.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["hard", "link", "uno"]);
    assert_eq!(fs::read_link(home.join("d/link")).unwrap().to_str(), Some("uno"));
}

#[test]
fn many_files_and_names_that_are_no_text_come_through() {
    if !have("sftp") {
        return;
    }
    let server = Server::start();
    let directory = server.home().join("many");
    fs::create_dir(&directory).unwrap();
    for n in 0..350 {
        fs::write(directory.join(format!("file{n:03}")), n.to_string()).unwrap();
    }
    let strange = std::ffi::OsStr::from_bytes(b"na\xefve");
    fs::write(directory.join(strange), "strange").unwrap();
    let back = server.scratch.path().join("back");
    let mut command = server.program("scp");
    command.args(["-r", "-q", "127.0.0.1:many"]).arg(&back);
    well(&finish(command, b""));
    assert_eq!(fs::read_dir(&back).unwrap().count(), 351);
    assert_eq!(fs::read_to_string(back.join("file349")).unwrap(), "349");
    assert_eq!(fs::read_to_string(back.join(strange)).unwrap(), "strange");
}

#[test]
fn rsync_works_by_the_plain_name_of_ssh() {
    if !have("rsync") || !have("ssh") {
        return;
    }
    let server = Server::start();
    let here = server.scratch.path().join("here");
    fs::create_dir_all(here.join("sub")).unwrap();
    for n in 0..50 {
        fs::write(here.join("sub").join(n.to_string()), vec![n; 10_000]).unwrap();
    }
    // Not from the client's `bin`: rsync itself finds `ssh` there through PATH.
    let rsync = |from: &str, to: &str| {
        let mut command = server.program("ssh");
        let path =
            command.get_envs().find(|(name, _)| *name == "PATH").unwrap().1.unwrap().to_owned();
        command = std::process::Command::new("rsync");
        command.env("PATH", path).args(["-a", "--delete", from, to]);
        well(&finish(command, b""))
    };
    rsync(&format!("{}/", here.display()), "127.0.0.1:copy/");
    fs::remove_file(here.join("sub/7")).unwrap();
    rsync(&format!("{}/", here.display()), "127.0.0.1:copy/");
    let back = server.scratch.path().join("back");
    rsync("127.0.0.1:copy/", &format!("{}/", back.display()));
    assert_eq!(fs::read_dir(back.join("sub")).unwrap().count(), 49);
    assert_eq!(fs::read(back.join("sub/9")).unwrap(), vec![9; 10_000]);
}
