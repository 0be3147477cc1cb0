//! What clients ask that is not granted, and what is no client at all.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use russh::{ChannelMsg, Sig, client};

use crate::harness::{Server, have, lives, until};

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;
    async fn check_server_key(
        &mut self,
        _: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// Runs `talk` with an authenticated connection of the library's own client, which asks what OpenSSH's never does.
fn with_client<T>(server: &Server, talk: impl AsyncFnOnce(client::Handle<Trusting>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = std::sync::Arc::new(client::Config::default());
        let mut handle =
            client::connect(config, ("127.0.0.1", server.port), Trusting).await.unwrap();
        assert!(handle.authenticate_none("anybody").await.unwrap().success());
        tokio::time::timeout(Duration::from_secs(60), talk(handle)).await.unwrap()
    })
}

/// The answer to the last request.
#[expect(clippy::wildcard_enum_match_arm, reason = "other messages do not matter here")]
async fn answer(channel: &mut russh::Channel<client::Msg>) -> bool {
    loop {
        match channel.wait().await.unwrap() {
            ChannelMsg::Success => return true,
            ChannelMsg::Failure => return false,
            _ => {}
        }
    }
}

#[test]
#[expect(clippy::wildcard_enum_match_arm, reason = "other messages do not matter here")]
fn agent_x11_and_path_sockets_are_refused() {
    let server = Server::start();
    with_client(&server, async |handle| {
        let mut channel = handle.channel_open_session().await.unwrap();
        channel.agent_forward(true).await.unwrap();
        assert!(!answer(&mut channel).await);
        channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
        assert!(!answer(&mut channel).await);
        channel.set_env(true, "LD_PRELOAD", "x").await.unwrap();
        assert!(!answer(&mut channel).await);
        channel.set_env(true, "LC_ALL", "C").await.unwrap();
        assert!(answer(&mut channel).await);
        channel.request_subsystem(true, "netconf").await.unwrap();
        assert!(!answer(&mut channel).await);
        assert!(handle.channel_open_direct_streamlocal("/run/x").await.is_err());
        assert!(handle.streamlocal_forward("/tmp/x").await.is_err());
        assert!(handle.channel_open_x11("127.0.0.1", 1).await.is_err());
        // The session is as good as before.
        channel.exec(true, "exit 3").await.unwrap();
        assert!(answer(&mut channel).await);
        channel.exec(true, "exit 4").await.unwrap();
        let mut status = None;
        let mut second = None;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::Failure => second = Some(false),
                ChannelMsg::Success => second = Some(true),
                _ => {}
            }
        }
        assert_eq!(status, Some(3));
        assert_ne!(second, Some(true), "one session, one command");
    });
}

#[test]
fn path_sockets_are_refused_to_openssh_too() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let path = server.scratch.path().join("socket");
    let what = format!("{}:127.0.0.1:1", path.display());
    let output =
        server.run(&["-o", "ExitOnForwardFailure=yes", "-R", &what, "127.0.0.1", "true"], b"");
    assert_eq!(output.status.code(), Some(255));
    assert!(!path.exists());
}

#[test]
fn a_signal_reaches_the_whole_group_of_the_command() {
    let server = Server::start();
    let pid = with_client(&server, async |handle| {
        let mut channel = handle.channel_open_session().await.unwrap();
        channel
            .exec(true, "sleep 300 & echo $!; trap 'exit 11' USR1; echo; while :; do wait; done")
            .await
            .unwrap();
        let mut text = String::new();
        while !text.ends_with("\n\n") {
            if let ChannelMsg::Data { data } = channel.wait().await.unwrap() {
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
        channel.signal(Sig::USR1).await.unwrap();
        let mut status = None;
        while let Some(message) = channel.wait().await {
            if let ChannelMsg::ExitStatus { exit_status } = message {
                status = Some(exit_status);
            }
        }
        assert_eq!(status, Some(11));

        let mut channel = handle.channel_open_session().await.unwrap();
        channel.exec(true, "exec sleep 300").await.unwrap();
        assert!(answer(&mut channel).await);
        channel.signal(Sig::KILL).await.unwrap();
        let mut signal = None;
        while let Some(message) = channel.wait().await {
            if let ChannelMsg::ExitSignal { signal_name, .. } = message {
                signal = Some(signal_name);
            }
        }
        assert!(matches!(signal, Some(Sig::KILL)));
        text.trim().parse::<u32>().unwrap()
    });
    until("the background process got it too", || !lives(pid));
}

#[test]
#[expect(clippy::wildcard_enum_match_arm, reason = "other messages do not matter here")]
fn many_sessions_on_one_connection_do_not_wait_for_each_other() {
    let server = Server::start();
    with_client(&server, async |handle| {
        // One that is fed and does not read.
        let unread = handle.channel_open_session().await.unwrap();
        unread.exec(true, "exec sleep 300").await.unwrap();
        let mut feed = Box::pin(async {
            let chunk = vec![0; 1 << 20];
            loop {
                unread.data(&chunk[..]).await.unwrap();
            }
        });
        let fed = tokio::time::timeout(Duration::from_secs(2), &mut feed).await;
        assert!(fed.is_err(), "windows stop what nobody reads");
        for n in 0..3 {
            let mut channel = handle.channel_open_session().await.unwrap();
            channel.exec(true, format!("cat; exit {n}")).await.unwrap();
            channel.data(&b"hello"[..]).await.unwrap();
            channel.eof().await.unwrap();
            let (mut text, mut status) = (Vec::new(), None);
            while let Some(message) = channel.wait().await {
                match message {
                    ChannelMsg::Data { data } => text.extend_from_slice(&data),
                    ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                    _ => {}
                }
            }
            assert_eq!((text, status), (b"hello".to_vec(), Some(n)));
        }
    });
}

#[test]
fn random_bytes_and_silence_do_no_harm() {
    let server = Server::start();
    let connect = || {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let _silent: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut state = 88_172_645_463_325_252_u64;
    for round in 0..60 {
        let mut stream = connect();
        let mut junk = if round % 2 == 0 { b"SSH-2.0-junk\r\n".to_vec() } else { Vec::new() };
        for _ in 0..(round * 40) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            junk.extend_from_slice(&state.to_le_bytes());
        }
        let _ = stream.write_all(&junk);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    if have("ssh") {
        assert_eq!(server.says("echo alive"), "alive\n");
    }
}

#[test]
fn connections_without_proof_are_bounded() {
    let server = Server::start();
    let streams: Vec<_> =
        (0..100).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap()).collect();
    let mut refused = 0;
    for mut stream in &streams {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut byte = [0];
        if stream.read(&mut byte).map_or(true, |n| n == 0) {
            refused += 1;
        }
    }
    assert_eq!(refused, 36, "64 may wait from one address");
    // They make room when they go, and other addresses have room all the time.
    if have("ssh") {
        let output = server.run(&["-b", "127.0.0.2", "127.0.0.1", "echo in"], b"");
        assert_eq!(output.stdout, b"in\n");
        drop(streams);
        until("room again", || server.run(&["127.0.0.1", "true"], b"").status.success());
    }
}
