//! File transfer: the sftp subsystem, version 3 of the protocol (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, so that
//! `sftp`, `scp` and sshfs work without an OpenSSH server installed.
//!
//! One plain thread per session reads requests and answers them in order, as OpenSSH's `sftp-server` does; a socket pair joins it
//! to the channel. Names are bytes: file names that are no UTF-8 come through as they are.

use std::{os::unix::net::UnixStream, path::PathBuf};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::session::Wires;

mod files;
mod server;
mod wire;

/// Bytes read from the server at once: what fits one packet of ssh.
const CHUNK: usize = 32768;

/// Carries an sftp session to its end.
pub(super) async fn run(home: PathBuf, mut wires: Wires) {
    match start(home) {
        Ok(stream) => {
            let (mut read, mut write) = stream.into_split();
            let mut input = wires.input.clone();
            let feed = async {
                let _ = tokio::io::copy(&mut input, &mut write).await;
                let _ = write.shutdown().await;
                std::future::pending::<()>().await;
            };
            let drain = async {
                loop {
                    let mut chunk = Vec::with_capacity(CHUNK);
                    match read.read_buf(&mut chunk).await {
                        Ok(0) | Err(_) => break,
                        Ok(_) => {}
                    }
                    if wires.output.data_bytes(chunk).await.is_err() {
                        break;
                    }
                }
            };
            let closed = async { while wires.orders.recv().await.is_some() {} };
            tokio::select! {
                () = feed => {}
                () = drain => {}
                () = closed => {}
            }
            let _ = wires.output.eof().await;
            let _ = wires.output.exit_status(0).await;
        }
        Err(error) => {
            tracing::warn!("starting an sftp session: {error}");
            let _ = wires.output.exit_status(1).await;
        }
    }
    let _ = wires.output.close().await;
    wires.channels.remove(wires.output.id());
}

/// Starts the thread; it ends when our end of the socket pair is dropped.
fn start(home: PathBuf) -> std::io::Result<tokio::net::UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    std::thread::Builder::new().name("sftp".to_owned()).spawn(move || {
        if let Err(error) = server::serve(&theirs, &theirs, home) {
            tracing::debug!("sftp session ended: {error}");
        }
    })?;
    tokio::net::UnixStream::from_std(ours)
}
