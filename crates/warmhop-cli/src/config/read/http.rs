//! `[http]`: the front doors, the limits on clients there, and the proxies that the peer trusts.

use std::net::SocketAddr;
use std::time::Duration;

use warmhop::{ClientLimits, TrustedProxies};

use super::{Field, Table};
use crate::config::{Http, Tls, memory};

/// The least default budget for clients' memory.
const MEMORY_MIN: u64 = 32 << 20;

pub(super) fn read(root: &mut Table<'_>) -> Http {
    let mut http = Http {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 8081))],
        tls: None,
        reveal: true,
        error_page: None,
        limits: ClientLimits::default(),
        trusted_proxies: TrustedProxies::default(),
        proxy_protocol: false,
        drain_grace: Duration::from_secs(30),
    };
    http.limits.memory = memory::default().max(MEMORY_MIN);
    let Some(mut table) = root.table("http") else { return http };
    if let Some(field) = table.take("listen") {
        http.listen =
            field.array().unwrap_or_default().iter().filter_map(Field::socket_addr).collect();
    }
    if let Some(mut tls) = table.table("tls") {
        let remedy = "tls = { cert = \"cert.pem\", key = \"key.pem\" }";
        let cert = tls.required_path("cert", "there is no certificate", remedy);
        let key = tls.required_path("key", "there is no private key", remedy);
        http.tls = cert.zip(key).map(|(cert, key)| Tls { cert, key });
        tls.finish();
    }
    if let Some(reveal) = table.take("reveal").and_then(|field| field.boolean()) {
        http.reveal = reveal;
    }
    http.error_page = table.take("error_page").and_then(|field| field.path_to_be());
    read_limits(&mut table, &mut http.limits);
    if let Some(field) = table.take("trusted_proxies") {
        for item in field.array().unwrap_or_default() {
            item.checked(|text| {
                let added = http.trusted_proxies.add(text);
                added.map_err(|invalid| format!("expected {}", invalid.expected))
            });
        }
    }
    if let Some(field) = table.take("proxy_protocol") {
        http.proxy_protocol = field.boolean().unwrap_or_default();
        if http.proxy_protocol && http.trusted_proxies.is_empty() {
            field.warn(
                "anybody who reaches a front door can claim to be somebody else",
                "name the proxies: trusted_proxies = [\"10.0.0.0/8\"]",
            );
        }
    }
    // A peer that is asked to end must not take for ever.
    let bounds = Duration::ZERO..=Duration::from_secs(3600);
    table.set_duration("drain_grace", bounds, &mut http.drain_grace);
    table.finish();
    http
}

/// The limits on clients.
fn read_limits(table: &mut Table<'_>, limits: &mut ClientLimits) {
    table.set_size("memory", (1 << 20)..=(1 << 40), &mut limits.memory);
    table.set_usize("connections_per_address", 1..=1 << 20, &mut limits.connections_per_address);
    table.set_size("body_rate", 0..=1 << 30, &mut limits.body_rate);
    let timeout = Duration::from_secs(1)..=Duration::from_secs(86_400);
    table.set_duration("body_timeout", timeout, &mut limits.body_timeout);
}
