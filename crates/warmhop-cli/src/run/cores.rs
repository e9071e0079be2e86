//! The threads that serve clients: one a core, each with a runtime and a listener of its own.
//!
//! A request stays on the thread that accepted its connection, from its first byte to its last, and
//! so does the app's connection that it is sent on. A work-stealing runtime would move its tasks
//! between cores, and each wake of another core costs more than all that a proxy does for a small
//! request. The kernel spreads connections over the listeners (`SO_REUSEPORT`).
//!
//! The first thread is the one that the peer was started on. It serves clients like the others, and
//! everything else besides: the mesh port, the admin listener, the apps' processes.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tracing::warn;
use warmhop::Mesh;
use warmhop::identity::FrontDoorTls;

use crate::config::Config;
use crate::host::memory;

/// Connections that the kernel keeps until they are accepted; it may keep fewer.
const BACKLOG: i32 = 1024;

/// The runtime of one thread.
///
/// # Errors
/// If the system cannot provide event notification for its sockets.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// How many threads serve clients: as many as are configured, but not more than there are cores.
#[must_use]
pub fn threads(config: &Config) -> NonZeroUsize {
    // This respects the cores that the process is bound to and the limit of a control group.
    let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match config.run.threads {
        Some(wanted) if wanted > cores => {
            let problem = config.problem(
                "run.threads",
                format!("{wanted} threads, but this machine gives the peer {cores}"),
                format!("it runs with {cores}; leave the key out to have one a core"),
            );
            warn!("{problem}");
            cores
        }
        Some(wanted) => wanted,
        None => cores,
    }
}

/// A front door's listeners, one a thread.
pub struct Door {
    /// The listener of the thread that the peer is started on.
    pub first: TcpListener,
    /// The listeners of the others; they are registered where they are served.
    pub others: Vec<std::net::TcpListener>,
}

impl Door {
    /// Listens at `addr` with one listener for each of `threads`.
    ///
    /// # Errors
    /// If nothing can listen at the address, as when another process already does.
    pub async fn open(addr: SocketAddr, threads: NonZeroUsize) -> io::Result<Self> {
        let first = TcpListener::bind(addr).await?;
        if threads == NonZeroUsize::MIN {
            return Ok(Self { first, others: Vec::new() });
        }
        // With SO_REUSEPORT two processes of one user could share the address unnoticed. A first
        // listener without it has shown that nobody else listens there, and which port was chosen.
        let addr = first.local_addr()?;
        drop(first);
        let mut listeners =
            (0..threads.get()).map(|_| shared(addr)).collect::<io::Result<Vec<_>>>()?;
        let first = TcpListener::from_std(listeners.remove(0))?;
        Ok(Self { first, others: listeners })
    }
}

/// A listener at an address where others of this process listen.
fn shared(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The threads besides the first; they end when this is dropped.
pub struct Cores(watch::Sender<()>);

/// Serves the front doors on a thread for each of their other listeners; `doors` are in the order
/// in which the builder got them.
///
/// # Errors
/// If a thread or its runtime cannot be created.
pub fn serve(
    mesh: &Mesh,
    doors: Vec<(Vec<std::net::TcpListener>, Option<FrontDoorTls>)>,
) -> io::Result<Cores> {
    let cores = Cores(watch::Sender::new(()));
    let mut by_thread: Vec<Vec<_>> = Vec::new();
    for (door, (listeners, tls)) in doors.into_iter().enumerate() {
        for (at, listener) in listeners.into_iter().enumerate() {
            if by_thread.len() <= at {
                by_thread.push(Vec::new());
            }
            by_thread[at].push((door, listener, tls.clone()));
        }
    }
    for (at, doors) in by_thread.into_iter().enumerate() {
        let (runtime, mesh, mut ended) = (runtime()?, mesh.clone(), cores.0.subscribe());
        thread::Builder::new().name(format!("core-{}", at + 2)).spawn(move || {
            for (door, listener, tls) in doors {
                let mesh = mesh.clone();
                runtime.spawn(async move {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => mesh.serve_front_door(door, listener, tls).await,
                        Err(error) => warn!(%error, "a thread cannot wait for its listener"),
                    }
                });
            }
            drop(mesh);
            runtime.spawn(memory::gives_back());
            // Connections are served until the first thread has seen them end.
            let _ = runtime.block_on(ended.changed());
            runtime.shutdown_background();
        })?;
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_door_that_another_process_could_share_is_refused_where_somebody_listens() {
        let two = NonZeroUsize::new(2).unwrap();
        let door = Door::open("127.0.0.1:0".parse().unwrap(), two).await.unwrap();
        let addr = door.first.local_addr().unwrap();
        assert_eq!(door.others.len(), 1);
        assert_eq!(door.others[0].local_addr().unwrap(), addr);
        for threads in [NonZeroUsize::MIN, two] {
            let error = Door::open(addr, threads).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
    }
}
