//! What a replica reaches the others by: a network of its own where we may make one, so that a cut is
//! one of Linux itself (no connection is made, no byte acknowledged, nobody is told), else proxies.
//!
//! A network is a namespace with two wires out of it: one to the clients and to WeChat, one to what the
//! replica stands on. That one is cut by sending its frames, both ways, to an address that nobody has.

use std::{
    net::Ipv4Addr,
    process::Command as StdCommand,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::process::Command;

use crate::{
    cluster::named_by,
    gate::{Gate, Way},
};

/// Says whether namespaces can be made here: `yes` or `no`.
const NAMESPACES: &str = "XINFU_TEST_NAMESPACES";
/// The address, below that of the network, of no device.
const NOBODY: &str = "02:00:00:00:00:00";

/// The way of a replica to all others.
pub(super) struct Network {
    /// Where the replica listens.
    pub(super) address: Ipv4Addr,
    namespace: Option<Namespace>,
    /// To WeChat, which is never cut.
    _upstream: Gate,
    /// Where it finds WeChat, as host and port.
    pub(super) upstream: String,
    /// To what it stands on.
    gates: Vec<Gate>,
}

impl Network {
    /// Makes one to the simulated WeChat, which sees the replica at the address `seen`, and to the
    /// servers that it stands on, each as host and port.
    pub(super) async fn to(upstream: &str, seen: Ipv4Addr, servers: &[&str]) -> Self {
        let namespace = match named_by(NAMESPACES).as_str() {
            "yes" => Some(Namespace::make().await),
            _ => None,
        };
        let address =
            |pick: fn(&Namespace) -> Ipv4Addr| namespace.as_ref().map_or(Ipv4Addr::LOCALHOST, pick);
        let mut gates = Vec::new();
        for server in servers {
            let near = address(|it| it.store.near.ip);
            gates.push(Gate::at(near, Ipv4Addr::UNSPECIFIED, server).await);
        }
        let gate = Gate::at(address(|it| it.open.near.ip), seen, upstream).await;
        let address = address(|it| it.open.far.ip);
        Self { address, namespace, upstream: gate.host.clone(), _upstream: gate, gates }
    }

    /// Where the replica finds the servers that it stands on, as host and port.
    pub(super) fn servers(&self) -> Vec<&str> {
        self.gates.iter().map(|gate| gate.host.as_str()).collect()
    }

    /// What cuts it off.
    pub(super) fn kind(&self) -> &'static str {
        if self.namespace.is_some() { "network namespaces" } else { "proxies" }
    }

    /// A command that runs in it.
    pub(super) fn command(&self, program: &str) -> Command {
        match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", namespace.name)).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Cuts it off from what it stands on, or lets it through again.
    pub(super) async fn set(&self, way: Way) {
        if let Some(namespace) = &self.namespace {
            namespace.let_through(way != Way::Swallowing).await;
            if way == Way::Swallowing {
                return;
            }
        }
        self.gates.iter().for_each(|gate| gate.set(way));
    }
}

/// A network namespace of Linux, until it is dropped.
struct Namespace {
    name: String,
    open: Wire,
    store: Wire,
}

impl Namespace {
    async fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("xinfu-{process}-{count}");
        ip(&["netns", "add", &name]).await;
        // Eight addresses for each, of those that are kept for measurements of networks.
        let first =
            u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (process % 4_096 * 32) + count % 4 * 8;
        let namespace = Self {
            open: Wire::new(first, format!("xf{process}o{count}")),
            store: Wire::new(first + 4, format!("xf{process}s{count}")),
            name,
        };
        namespace.open.lay(&namespace.name).await;
        namespace.store.lay(&namespace.name).await;
        namespace
    }

    /// Lets what goes to the store and back through, or loses it.
    async fn let_through(&self, open: bool) {
        let Wire { near, far, device } = &self.store;
        for (end, inside) in [(far, &[][..]), (near, &["-n", &self.name])] {
            let to = if open { end.mac() } else { NOBODY.to_owned() };
            let (ip_address, kept) = (end.ip.to_string(), ["nud", "permanent", "dev", device]);
            let neighbour = ["neigh", "replace", &ip_address, "lladdr", &to];
            ip(&[inside, &neighbour, &kept].concat()).await;
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its wires go with it.
        let removed = StdCommand::new("ip").args(["netns", "delete", &self.name]).status();
        assert!(removed.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// A wire with two ends, one here and one in the namespace, whose devices have the same name.
struct Wire {
    near: End,
    far: End,
    device: String,
}

struct End {
    ip: Ipv4Addr,
}

impl End {
    /// An address of its own below that of the network.
    fn mac(&self) -> String {
        let [a, b, c, d] = self.ip.octets();
        format!("02:01:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

impl Wire {
    /// One whose ends have the two addresses after the first.
    fn new(first: u32, device: String) -> Self {
        let end = |at: u32| End { ip: Ipv4Addr::from(first + at) };
        Self { near: end(1), far: end(2), device }
    }

    async fn lay(&self, namespace: &str) {
        let Self { near, far, device } = self;
        let peer =
            ["type", "veth", "peer", "name", device, "address", &far.mac(), "netns", namespace];
        let near_mac = near.mac();
        let link = ["link", "add", device, "address", &near_mac];
        ip(&[&link[..], &peer].concat()).await;
        for (end, inside) in [(near, &[][..]), (far, &["-n", namespace])] {
            let address = format!("{}/30", end.ip);
            ip(&[inside, &["address", "add", &address, "dev", device]].concat()).await;
            ip(&[inside, &["link", "set", device, "up"]].concat()).await;
        }
    }
}

/// Changes something of the network.
async fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().await.unwrap();
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}
