//! Finds out where an app listens, for apps that do not listen where they should. It reads `/proc`
//! when a start takes long.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The state of a socket that listens in a line of `/proc/PID/net/tcp`: see proc_pid_net(5).
const LISTENS: &str = "0A";
/// The columns of the fields.
const ADDRESS: usize = 1;
const STATE: usize = 3;
const INODE: usize = 9;
/// The column with the group in `/proc/PID/stat`, counted after the command's closing bracket.
const GROUP: usize = 2;

/// Why an app cannot be reached at `port`, if it listens at other places only, as text; `None` if
/// it listens nowhere, at the right place, or that is unknown.
pub(super) fn elsewhere(group: i32, port: u16) -> Option<String> {
    let places = places(Path::new("/proc"), group);
    if places.is_empty() || places.iter().any(|place| reaches(*place, port)) {
        return None;
    }
    let places: Vec<String> = places.iter().map(ToString::to_string).collect();
    Some(format!(
        "it listens at {} and not at 127.0.0.1:{port}, which its variable PORT asks for",
        places.join(", ")
    ))
}

/// Whether a connection to `port` of 127.0.0.1 reaches a listener at `place`.
fn reaches(place: SocketAddr, port: u16) -> bool {
    let takes_loopback = match place.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST,
        IpAddr::V6(ip) => ip.is_unspecified() || ip.to_ipv4_mapped() == Some(Ipv4Addr::LOCALHOST),
    };
    place.port() == port && takes_loopback
}

/// Where the processes of `group` listen.
fn places(proc: &Path, group: i32) -> BTreeSet<SocketAddr> {
    let mut places = BTreeSet::new();
    for process in processes(proc, group) {
        let sockets = sockets(&process);
        for table in ["net/tcp", "net/tcp6"] {
            let table = fs::read_to_string(process.join(table)).unwrap_or_default();
            let listeners = table.lines().skip(1).filter_map(listener);
            places.extend(
                listeners.filter(|(_, inode)| sockets.contains(inode)).map(|(place, _)| place),
            );
        }
    }
    places
}

fn processes(proc: &Path, group: i32) -> Vec<PathBuf> {
    let is_of_group = |process: &PathBuf| {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // The command's name may contain brackets and spaces.
        let (_, fields) = stat.rsplit_once(')')?;
        Some(fields.split_ascii_whitespace().nth(GROUP)?.parse::<i32>().ok()? == group)
    };
    let entries = fs::read_dir(proc).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|process| is_of_group(process).unwrap_or(false)).collect()
}

/// The inodes of the sockets that a process has open.
fn sockets(process: &Path) -> HashSet<u64> {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let socket = |file: fs::DirEntry| {
        let target = fs::read_link(file.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    files.filter_map(socket).collect()
}

/// A socket that listens, and its inode.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(STATE)? != LISTENS {
        return None;
    }
    let (ip, port) = fields.get(ADDRESS)?.split_once(':')?;
    let place = SocketAddr::new(address(ip)?, u16::from_str_radix(port, 16).ok()?);
    Some((place, fields.get(INODE)?.parse().ok()?))
}

/// The words of an address are in the order of the machine's bytes.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn it_is_found_where_a_process_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let place = listener.local_addr().expect("it has an address");
        let group = nix::unistd::getpgrp().as_raw();
        assert!(places(Path::new("/proc"), group).contains(&place));
        assert_eq!(elsewhere(group, place.port()), None, "at the right one among others");
    }

    #[test]
    fn a_line_is_read_as_the_kernel_writes_it() {
        let v4 =
            "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 42 1";
        let v6 = "  1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 \
                  0A 00000000:00000000 00:00000000 00000000 0 0 43 1";
        if cfg!(target_endian = "little") {
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
            assert_eq!(listener(v4), Some((local, 42)));
            let local = SocketAddr::from((Ipv6Addr::LOCALHOST, 80));
            assert_eq!(listener(v6), Some((local, 43)));
        }
        assert_eq!(listener(&v4.replace(" 0A ", " 01 ")), None, "a connection");
        assert_eq!(listener("sl local_address"), None);
    }

    #[test]
    fn a_listener_is_reached_by_loopback_or_not() {
        for (place, reached) in [
            ("127.0.0.1:80", true),
            ("0.0.0.0:80", true),
            ("[::]:80", true),
            ("[::1]:80", false),
            ("10.0.0.1:80", false),
            ("127.0.0.1:81", false),
        ] {
            assert_eq!(reaches(place.parse().expect("an address"), 80), reached, "{place}");
        }
    }
}
