//! `warmhop lb`: what a load balancer in front of the mesh is told, affinity included.
//!
//! The cookie `warmhop` ends in a dot and the name of the peer that the client should come
//! back to. Each recipe reads that ending, sends the client there while that peer is healthy,
//! and to any other peer when it is not: every peer can serve every request, so a wrong
//! choice costs a hop and nothing else.
//!
//! Health is a connect to the front door, which a draining peer closes: the admin listener
//! knows more (`/readyz`), but stays on loopback unless it is told otherwise.

use std::fmt::Write;

use clap::ValueEnum;

use crate::client::{Status, front_door};

/// A load balancer that a recipe exists for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Balancer {
    /// HAProxy 2.4 or later.
    Haproxy,
    /// nginx 1.11 or later, the open-source one.
    Nginx,
    /// Apache httpd 2.4.47 or later.
    Apache,
    /// Envoy, configuration API v3.
    Envoy,
}

/// A peer as a load balancer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Backend {
    /// The peer's name: what the cookie ends in.
    name: String,
    host: String,
    port: u16,
}

impl Backend {
    fn addr(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The configuration of `balancer` for the mesh that `status` tells of.
///
/// # Errors
/// If no peer has a front door that could be named.
pub fn recipe(balancer: Balancer, status: &Status) -> Result<String, String> {
    let backends = backends(status);
    if backends.is_empty() {
        return Err("no peer of this mesh has a front door; set [http] listen".into());
    }
    let mut text = String::new();
    let names: Vec<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
    let _ = writeln!(text, "# The mesh as {} sees it: {}.", names[0], names.join(", "));
    text.push_str("# A peer that joins later has to be added; print this again.\n");
    let local = backends.iter().any(|backend| backend.host == "0.0.0.0" || backend.host == "[::]");
    if local {
        text.push_str("# Replace 0.0.0.0 by the address that reaches that peer.\n");
    }
    match balancer {
        Balancer::Haproxy => haproxy(&backends, &mut text),
        Balancer::Nginx => nginx(&backends, &mut text),
        Balancer::Apache => apache(&backends, &mut text),
        Balancer::Envoy => envoy(&backends, &mut text),
    }
    Ok(text)
}

/// Every peer with a front door, the one that was asked first. One that is gone is left in:
/// the balancer's own checks find it when it is back.
fn backends(status: &Status) -> Vec<Backend> {
    let this = status.peer.http.first().map(|door| (&status.peer.name, door));
    let others = status.peers.iter().filter_map(|peer| Some((&peer.name, peer.http.as_ref()?)));
    this.into_iter()
        .chain(others)
        .filter_map(|(name, door)| {
            // Both go into a configuration file, so neither may be more than it should.
            let name = warmhop::ids::PeerId::new(name).ok()?.to_string();
            let door = front_door(door)?;
            Some(Backend { name, host: door.host().into(), port: door.port_u16()? })
        })
        .collect()
}

fn haproxy(backends: &[Backend], text: &mut String) {
    text.push_str(
        "\n\
         frontend warmhop\n    \
             mode http\n    \
             bind :80\n    \
             default_backend warmhop\n\
         \n\
         backend warmhop\n    \
             mode http\n    \
             balance leastconn\n    \
             option redispatch\n    \
             option forwardfor\n    \
             timeout tunnel 1h\n",
    );
    for Backend { name, .. } in backends {
        let _ = writeln!(text, "    use-server {name} if {{ req.cook(warmhop) -m end .{name} }}");
    }
    for backend in backends {
        let _ = writeln!(text, "    server {} {} check inter 1s", backend.name, backend.addr());
    }
}

fn nginx(backends: &[Backend], text: &mut String) {
    text.push_str("# It belongs into the http block.\n\nupstream warmhop_any {\n    least_conn;\n");
    for backend in backends {
        let _ = writeln!(text, "    server {} max_fails=1 fail_timeout=2s;", backend.addr());
    }
    text.push_str("}\n");
    for chosen in backends {
        let _ = writeln!(text, "\nupstream warmhop_{} {{", chosen.name);
        let _ = writeln!(text, "    server {} max_fails=1 fail_timeout=2s;", chosen.addr());
        for other in backends.iter().filter(|other| *other != chosen) {
            let _ = writeln!(text, "    server {} backup;", other.addr());
        }
        text.push_str("}\n");
    }
    text.push_str("\nmap $cookie_warmhop $warmhop_upstream {\n    default warmhop_any;\n");
    for Backend { name, .. } in backends {
        let _ = writeln!(text, "    \"~\\.{name}$\" warmhop_{name};");
    }
    text.push_str(
        "}\n\
         \n\
         map $http_upgrade $warmhop_connection {\n    \
             default upgrade;\n    \
             \"\" \"\";\n\
         }\n\
         \n\
         server {\n    \
             listen 80;\n    \
             location / {\n        \
                 proxy_pass http://$warmhop_upstream;\n        \
                 proxy_http_version 1.1;\n        \
                 proxy_set_header Host $http_host;\n        \
                 proxy_set_header Upgrade $http_upgrade;\n        \
                 proxy_set_header Connection $warmhop_connection;\n        \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        \
                 proxy_set_header X-Forwarded-Proto $scheme;\n        \
                 proxy_buffering off;\n        \
                 proxy_request_buffering off;\n        \
                 proxy_read_timeout 1h;\n    \
             }\n\
         }\n",
    );
}

fn apache(backends: &[Backend], text: &mut String) {
    text.push_str(
        "# It needs mod_proxy, mod_proxy_http, mod_proxy_balancer, mod_proxy_hcheck,\n\
         # mod_watchdog, mod_slotmem_shm and mod_lbmethod_byrequests.\n\
         \n\
         <Proxy \"balancer://warmhop\">\n",
    );
    for backend in backends {
        let _ = writeln!(
            text,
            "    BalancerMember \"http://{}\" route={} retry=2 hcmethod=TCP hcinterval=2",
            backend.addr(),
            backend.name
        );
    }
    text.push_str(
        "    ProxySet stickysession=warmhop\n\
         </Proxy>\n\
         ProxyPreserveHost On\n\
         ProxyPass        \"/\" \"balancer://warmhop/\" upgrade=websocket\n\
         ProxyPassReverse \"/\" \"balancer://warmhop/\"\n",
    );
}

/// Envoy has a cluster for each peer in which the others are the second priority, and the
/// cookie's ending chooses the cluster.
fn envoy(backends: &[Backend], text: &mut String) {
    text.push_str(
        "\n\
static_resources:
  listeners:
  - name: warmhop
    address: { socket_address: { address: 0.0.0.0, port_value: 80 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: warmhop
          use_remote_address: true
          upgrade_configs: [{ upgrade_type: websocket }]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: warmhop
              domains: [\"*\"]
              routes:
",
    );
    for Backend { name, .. } in backends {
        let _ = write!(
            text,
            "              - match:
                  prefix: /
                  headers:
                  - name: cookie
                    string_match: {{ safe_regex: {{ regex: '(.*;\\s*)?warmhop=[^;]*\\.{name}(;.*)?' }} }}
                route: {{ cluster: warmhop_{name}, timeout: 0s }}
"
        );
    }
    text.push_str(
        "              - match: { prefix: / }
                route: { cluster: warmhop_any, timeout: 0s }
  clusters:
",
    );
    envoy_cluster("any", None, backends, text);
    for chosen in backends {
        envoy_cluster(&chosen.name, Some(chosen), backends, text);
    }
}

fn envoy_cluster(name: &str, chosen: Option<&Backend>, backends: &[Backend], text: &mut String) {
    let _ = write!(
        text,
        "  - name: warmhop_{name}
    type: STRICT_DNS
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}
    health_checks:
    - {{ timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {{}} }}
    load_assignment:
      cluster_name: warmhop_{name}
      endpoints:
"
    );
    for backend in backends {
        let priority = u8::from(chosen.is_some_and(|chosen| chosen != backend));
        let host = backend.host.trim_start_matches('[').trim_end_matches(']');
        let _ = write!(
            text,
            "      - priority: {priority}
        lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: \"{host}\", port_value: {} }} }} }}
",
            backend.port
        );
    }
}

#[cfg(test)]
mod tests;
