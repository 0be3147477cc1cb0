//! Forwarded TCP connections: `-L` connects from inside the namespace, `-R` listens inside it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use russh::{
    ChannelMsg, ChannelOpenFailure, ChannelWriteHalf,
    server::{ChannelOpenHandle, Handle, Msg},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::{
    channels::{Channels, Owned},
    input::Input,
};

/// How long a forwarded connection may take to come about.
const CONNECT: Duration = Duration::from_secs(60);
/// How long what a client sent before it closed may take to be delivered.
const LINGER: Duration = Duration::from_secs(60);
/// Bytes read from a connection at once: what fits one packet of the protocol.
const CHUNK: usize = 32768;

/// What joins a forward to its connection.
pub(super) struct Wires {
    pub(super) input: Input,
    /// Ends when the client or the connection has closed the channel.
    pub(super) closed: oneshot::Receiver<()>,
    /// The peer may no longer execute.
    pub(super) revoked: watch::Receiver<bool>,
    pub(super) channels: Channels,
}

/// `-L`: connects to `host` and carries the channel until both directions have ended.
pub(super) async fn connect(
    host: String,
    port: u32,
    output: ChannelWriteHalf<Msg>,
    reply: ChannelOpenHandle,
    wires: Wires,
) {
    let channels = wires.channels.clone();
    let connected = async {
        let port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        TcpStream::connect((host.as_str(), port)).await
    };
    match tokio::time::timeout(CONNECT, connected).await {
        Ok(Ok(stream)) => {
            reply.accept().await;
            carry(stream, &output, wires).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(host, port, "forwarding: {error}");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
    channels.remove(output.id());
}

/// Carries both directions, each to its own end, then closes the channel. What came before the client closed it is still delivered.
async fn carry(stream: TcpStream, output: &ChannelWriteHalf<Msg>, wires: Wires) {
    let Wires { mut input, closed, revoked, .. } = wires;
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let mut inward = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut input, &mut write).await;
        let _ = write.shutdown().await;
        input.close();
    });
    let _inward = Owned(inward.abort_handle());
    let outward = async {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match read.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if output.data_bytes(chunk).await.is_err() {
                break;
            }
        }
        let _ = output.eof().await;
    };
    tokio::select! {
        () = async { outward.await; let _ = (&mut inward).await; } => {
            let _ = output.close().await;
        }
        _ = closed => {
            let _ = tokio::time::timeout(LINGER, inward).await;
        }
        () = is_revoked(revoked) => {}
    }
}

/// Ends when the peer may no longer execute, and only then.
async fn is_revoked(mut revoked: watch::Receiver<bool>) {
    if revoked.wait_for(|revoked| *revoked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Sockets that listen on one port.
pub(super) struct Listeners {
    pub(super) port: u16,
    sockets: Vec<TcpListener>,
}

/// `-R`: listens as asked: `localhost` on the loopback addresses, nothing or `*` on all, else on the address given.
pub(super) async fn listen(address: &str, port: u32) -> io::Result<Listeners> {
    let mut port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let addresses: Vec<IpAddr> = match address {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        // One socket takes both families.
        "" | "*" | "::" => vec![Ipv6Addr::UNSPECIFIED.into()],
        text => match text.parse() {
            Ok(address) => vec![address],
            Err(_) => {
                tokio::net::lookup_host((text, 0)).await?.map(|address| address.ip()).collect()
            }
        },
    };
    let mut sockets = Vec::new();
    let mut failed = None;
    for address in addresses {
        // With port 0 the first socket's port is everybody's.
        match TcpListener::bind(SocketAddr::new(address, port)).await {
            Ok(socket) => {
                port = socket.local_addr()?.port();
                sockets.push(socket);
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if sockets.is_empty() => Err(error),
        _ if sockets.is_empty() => Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
        _ => Ok(Listeners { port, sockets }),
    }
}

/// Accepts on `listeners` and offers each connection to the client, under the name by which it asked for the port.
pub(super) async fn accept(
    listeners: Listeners,
    name: (String, u32),
    handle: Handle,
    channels: Channels,
    revoked: watch::Receiver<bool>,
) {
    let mut accepting = JoinSet::new();
    for socket in listeners.sockets {
        let (name, handle) = (name.clone(), handle.clone());
        let (channels, revoked) = (channels.clone(), revoked.clone());
        accepting.spawn(async move {
            loop {
                match socket.accept().await {
                    Ok((stream, from)) => {
                        if channels.are_full() {
                            continue;
                        }
                        let (channels, revoked) = (channels.clone(), revoked.clone());
                        tokio::spawn(offer(
                            stream,
                            from,
                            name.clone(),
                            handle.clone(),
                            channels,
                            revoked,
                        ));
                    }
                    Err(error) => {
                        tracing::warn!("accepting for an ssh client: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
    }
    while accepting.join_next().await.is_some() {}
}

async fn offer(
    stream: TcpStream,
    from: SocketAddr,
    (address, port): (String, u32),
    handle: Handle,
    channels: Channels,
    revoked: watch::Receiver<bool>,
) {
    let opened = handle.channel_open_forwarded_tcpip(
        address,
        port,
        from.ip().to_canonical().to_string(),
        u32::from(from.port()),
    );
    let channel = match tokio::time::timeout(CONNECT, opened).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return tracing::debug!("an ssh client takes no connection: {error}"),
        Err(_) => return,
    };
    let id = channel.id();
    let (mut events, output) = channel.split();
    let input = channels.forward(id).0;
    // The library's own queue tells of the close, whichever of the two of us hears of the channel first.
    let (close, closed) = oneshot::channel();
    let _events = Owned(
        tokio::spawn(async move {
            while !matches!(events.wait().await, None | Some(ChannelMsg::Close)) {}
            drop(close);
        })
        .abort_handle(),
    );
    carry(stream, &output, Wires { input, closed, revoked, channels: channels.clone() }).await;
    channels.remove(id);
}
