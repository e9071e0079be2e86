//! From a builder's parts to a running peer, each part built from those below it: the mesh port,
//! the store of sessions, the apps, the node, and then its tasks and doors.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::{OnceCell, watch};
use warmhop_core::ids::Incarnation;
use warmhop_core::view::AppState;

use crate::app::AppSpec;
use crate::care::gauges::Gauges;
use crate::care::{upkeep, ways};
use crate::error::StartMeshError;
use crate::front::ingress::Ingress;
use crate::hop::HopRefusal;
use crate::http::clients::Clients;
use crate::links::counters::NetCounters;
use crate::links::net::{Net, NetConfig};
use crate::links::tuning::NetTuning;
use crate::mesh::background::Background;
use crate::mesh::builder::Builder;
use crate::mesh::change::{Nursery, SlotMaker, check_apps};
use crate::mesh::doors::FrontDoors;
use crate::mesh::leaving::Leaving;
use crate::mesh::running::{Mesh, RunningPeer};
use crate::observe::clock::Clock;
use crate::observe::lines::Refused;
use crate::observe::metrics::Metrics;
use crate::request::known_ids;
use crate::request::node::{Node, Parts};
use crate::sessions::store::Store;

impl Builder {
    /// Binds the mesh port, starts gossip, the apps that start at boot and the front doors. It does
    /// not wait for a seed: a peer that is alone serves what it can.
    ///
    /// # Errors
    /// See [`StartMeshError`]: each says what to do next.
    pub async fn start(mut self) -> Result<Mesh, StartMeshError> {
        self.registers.push(known_ids::registers_name());
        let specs: Vec<&AppSpec> = self.apps.iter().map(|(spec, _)| spec).collect();
        check_apps(&specs, &self.registers)?;
        crate::observe::failpoint::arm(self.failpoints.as_deref())?;
        let mut registry = Registry::with_prefix("warmhop");
        let metrics = Arc::new(Metrics::register(&mut registry));
        let clock = self.clock.take().unwrap_or_else(Clock::new);
        let incarnation = Incarnation::of(&self.peer, clock.own_wall(), rand::random());
        let http: Vec<SocketAddr> =
            self.front_doors.iter().filter_map(|(door, _)| door.local_addr().ok()).collect();
        let port = Net::bind(NetConfig {
            cluster: self.cluster.clone(),
            me: self.peer.clone(),
            incarnation,
            zone: self.zone.clone(),
            http: http.first().map(ToString::to_string),
            listen: self.mesh_listen,
            advertise: self.advertise,
            seeds: self.seeds.clone(),
            refused: std::mem::take(&mut self.refused),
            identity: self.identity.clone(),
            counters: NetCounters::new(&mut registry, metrics.doors.clone()),
            clock: clock.clone(),
            tuning: NetTuning::default(),
        })?;
        let maker = SlotMaker {
            me: self.peer.clone(),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            changed: watch::Sender::new(0),
            net: port.net(),
        };
        let node = self.node(incarnation, http, &maker);
        registry.register_collector(Box::new(Gauges(Arc::downgrade(&node))));
        let net = port.open(Arc::<Node>::clone(&node)).await?;
        node.count_peers();
        for slot in &node.apps().slots {
            slot.announce();
        }
        Ok(self.open(node, net, maker, registry).await)
    }

    /// The peer at rest: its apps, its registers and its store of sessions.
    fn node(
        &mut self,
        incarnation: Incarnation,
        http: Vec<SocketAddr>,
        maker: &SlotMaker,
    ) -> Arc<Node> {
        let net = maker.net.clone();
        let store = Store::new(
            incarnation,
            std::mem::take(&mut self.sessions),
            maker.clock.clone(),
            Arc::clone(&maker.metrics),
            Box::new(move |others, frame| net.send_session_to_all(others, frame)),
        );
        let apps = std::mem::take(&mut self.apps).into_iter();
        let slots: Vec<_> = apps.map(|(spec, app)| maker.slot(spec, app)).collect();
        for slot in &slots {
            maker.metrics.begin(slot.name(), &HopRefusal::LABELS);
        }
        let parts = Parts {
            me: self.peer.clone(),
            cluster: self.cluster.clone(),
            zone: self.zone.clone(),
            incarnation,
            reveal: self.reveal,
            error_page: std::mem::take(&mut self.error_page),
            clock: maker.clock.clone(),
            seeds: self.seeds.len(),
            slots,
            changed: maker.changed.clone(),
            store,
            net: maker.net.clone(),
            clients: Clients::new(
                self.client_limits,
                Arc::clone(&maker.metrics.refusals),
                maker.metrics.client_bytes.clone(),
            ),
            http,
            auth: self.identity.cookie_authenticator(),
            accesses: std::mem::take(&mut self.accesses),
            spans: std::mem::take(&mut self.spans),
            metrics: Arc::clone(&maker.metrics),
        };
        let registers = std::mem::take(&mut self.registers);
        Node::new(parts, |node| {
            registers.into_iter().map(|name| maker.keeper(name, node.clone())).collect()
        })
    }

    /// Starts the background tasks, and opens the front doors.
    async fn open(self, node: Arc<Node>, net: Net, maker: SlotMaker, registry: Registry) -> Mesh {
        let clients = Arc::clone(&node.clients);
        let trusted = self.trusted_proxies;
        let ingress = Arc::new(Ingress {
            node: Arc::clone(&node),
            clients,
            trusted,
            refused: Refused::default(),
        });
        let background = Background::default();
        background.spawn(Arc::clone(&node.store).wake());
        background.spawn(Arc::clone(&node.store).ask_others());
        background.spawn(upkeep::run(Arc::clone(&node), !self.seeds.is_empty()));
        background.spawn(upkeep::watch_load(Arc::clone(&node)));
        ways::offer(&node);
        background.spawn(ways::ask(Arc::clone(&node)));
        background.spawn(upkeep::keep_history(Arc::clone(&node)));
        let mut changes = maker.changed.subscribe();
        let nursery = Nursery::new(maker, background.clone());
        for slot in node.apps().slots.iter().chain(&node.registers) {
            nursery.tend(slot);
        }
        for slot in &node.registers {
            // They start without waiting for anything, but on a task of their own.
            while slot.state() != AppState::Ready && changes.changed().await.is_ok() {}
        }
        for layer in self.layers {
            let Some(slot) = node.slot(&layer.spec().name) else { continue };
            background.spawn(layer.join(Arc::clone(&ingress), slot));
        }
        let mut doors =
            FrontDoors::new(Arc::clone(&ingress), self.front_door_connections, self.proxy_protocol);
        for (listener, tls) in self.front_doors {
            if let Some(tls) = tls.clone() {
                background.spawn(tls.follow());
            }
            doors.add(listener, tls);
        }
        net.owe(true);
        Mesh(Arc::new(RunningPeer {
            node,
            net,
            ingress,
            nursery,
            registry,
            background,
            doors,
            drain_grace: self.drain_grace,
            leaving: Leaving::new(),
            ended: OnceCell::new(),
        }))
    }
}
