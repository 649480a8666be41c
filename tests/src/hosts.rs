//! Other hosts, as far as this one can tell: namespaces that are not traced, at the end of a cable.

use std::process::Command;

use anyhow::{Result, anyhow, ensure};

use crate::Netns;
use crate::program::{Go, Program, inside};

/// A host at the other end of a cable of the calling thread's namespace.
#[derive(Debug)]
pub struct OtherHost {
    netns: Netns,
}

impl OtherHost {
    /// Its address.
    pub const ADDR: &str = "192.0.2.2";
    /// An address on its wire that nobody has: what is sent there is taken and never answered.
    pub const SILENT: &str = "192.0.2.9";

    /// Lays the cable. This host's end has the address 192.0.2.1.
    ///
    /// # Errors
    /// When `ip` is not there or refuses.
    pub fn connected() -> Result<Self> {
        let netns = std::thread::scope(|scope| scope.spawn(Netns::enter).join())
            .map_err(|_| anyhow!("a thread panicked"))??;
        let host = Self { netns };
        let path = host.netns.path();
        ip(&format!(
            "link add tcptrace0 type veth peer name tcptrace1 address 02:00:00:00:00:02 netns {}",
            path.display()
        ))?;
        ip("address add 192.0.2.1/24 dev tcptrace0")?;
        ip("link set tcptrace0 up")?;
        host.come_back()?;
        host.ip("link set tcptrace1 up")?;
        for addr in [Self::ADDR, Self::SILENT] {
            ip(&format!(
                "neighbour add {addr} lladdr 02:00:00:00:00:02 dev tcptrace0"
            ))?;
        }
        Ok(host)
    }

    /// Where it is, for a test that has a tracer of its own there.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Starts a Go program there.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn start_go(&self) -> Result<Go> {
        Go::start_as(inside(&self.netns, Go::command()?))
    }

    /// Takes its address away: as if it had lost its power, what is sent to it is never answered.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn vanish(&self) -> Result<()> {
        self.ip("address del 192.0.2.2/24 dev tcptrace1")
    }

    /// Gives it its address again, with its connections as they were.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn come_back(&self) -> Result<()> {
        self.ip("address add 192.0.2.2/24 dev tcptrace1")
    }

    fn ip(&self, line: &str) -> Result<()> {
        run(line, inside(&self.netns, Command::new("ip")))
    }
}

/// Runs `ip` with the words of a line in the calling thread's namespace.
fn ip(line: &str) -> Result<()> {
    run(line, Command::new("ip"))
}

fn run(line: &str, mut command: Command) -> Result<()> {
    command.args(line.split_whitespace());
    let ended = Program::start(command)?.finish()?;
    ensure!(ended.status.success(), "ip {line}: {ended:?}");
    Ok(())
}
