//! A real server: Debian's nginx with a worker that hangs, and a client that dies mid-answer.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcptrace_tests::*;

const ADDR: &str = "127.0.0.1:8080";

/// nginx with one worker, in the calling thread's namespace.
struct Nginx {
    master: Child,
    directory: PathBuf,
}

impl Nginx {
    fn start(netns: &Netns) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("tcptrace-nginx-{}", netns.inode()));
        fs::create_dir_all(&directory)?;
        let file = fs::File::create(directory.join("large"))?;
        file.set_len(64 << 20)?;
        let root = directory.display();
        let configuration = format!(
            "daemon off; user root; worker_processes 1; pid {root}/pid; error_log {root}/error;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; server {{ listen {ADDR} backlog=2; root {root}; }} }}\n"
        );
        let path = directory.join("conf");
        fs::File::create(&path)?.write_all(configuration.as_bytes())?;
        let master = Command::new("nginx")
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nginx is not there: apt-get install nginx-light")?;
        Ok(Self { master, directory })
    }

    /// The worker, once it serves.
    fn worker(&self, client: &mut Actor) -> Result<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.master.id());
        let mut worker = None;
        wait_until("nginx to serve", || {
            worker = fs::read_to_string(&path)?
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok());
            let Ok(fd) = client.connected(ADDR.parse().map_err(std::io::Error::other)?) else {
                return Ok(false);
            };
            client.close(fd)?;
            Ok(worker.is_some())
        })?;
        worker.context("nginx has no worker")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let path = format!("/proc/{0}/task/{0}/children", self.master.id());
        let workers = fs::read_to_string(path).unwrap_or_default();
        // The master first: it would replace a worker that dies.
        _ = self.master.kill();
        _ = self.master.wait();
        for worker in workers
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
        }
        _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_worker_that_hangs_is_named_for_the_connections_it_loses() {
    in_netns(|netns| {
        let nginx = Nginx::start(netns)?;
        let mut client = actor("client")?;
        let worker = nginx.worker(&mut client)?;
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        kill(Pid::from_raw(worker.try_into()?), Signal::SIGSTOP)?;
        wait_for_process_state(worker, 'T')?;
        let addr = ADDR.parse()?;
        let fds: Vec<Fd> = (0..20)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        fds.into_iter().try_for_each(|fd| client.close(fd))?;
        let counted = netns
            .counters()?
            .since(&before, "TcpExtListenOverflows")
            .unwrap_or(0);
        // What was found full at the start was not lost then.
        let overflows = Events::of(tracer)?
            .named("accept_queue.overflow")
            .only(|record| record.get("tcptrace.accept_queue.path").is_some());
        ensure!(counted == 17, "the provocation itself: {counted}");
        assert_eq!(overflows.count(), counted);
        for event in &overflows.0 {
            assert_eq!(event.number("tcptrace.accept_queue.max"), Some(2));
            assert_eq!(event.text("process.executable.name"), Some("nginx"));
            // The master made the listener and the worker holds it: one of them, and both listed.
            let listed = event.get("tcptrace.owner.pids");
            let mut both = [nginx.master.id(), worker];
            both.sort_unstable();
            assert_eq!(listed, Some(&serde_json::json!(both)), "{event:?}");
        }
        Ok(())
    });
}

#[test]
fn a_client_killed_in_the_middle_of_an_answer() {
    in_netns(|netns| {
        let nginx = Nginx::start(netns)?;
        let mut client = actor("client")?;
        let worker = nginx.worker(&mut client)?;
        let tracer = trace(netns, &[])?;
        let fd = client.connected(ADDR.parse()?)?;
        let end = client.local_addr(fd)?;
        client.send(fd, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")?;
        client.wait_for(fd, libc::POLLIN)?;
        client.kill()?;
        let at_worker = |record: &Record| {
            record.name() == "reset.received"
                && record.number("network.peer.port") == Some(end.port().into())
        };
        tracer.wait_for(
            "the RST at the worker",
            std::time::Duration::from_secs(5),
            at_worker,
        )?;
        let events = Events::of(tracer)?;
        let sent = events
            .named("reset.sent")
            .local(end)
            .error("process_exited");
        assert_eq!(
            sent.0.first().and_then(Record::pid),
            Some(client.pid().into())
        );
        let received = events.named("reset.received").peer(end);
        assert_eq!(received.pids(), [worker]);
        let errors = events.named("socket.error").peer(end);
        assert!(errors.pids().iter().all(|pid| *pid == worker), "{errors:?}");
        Ok(())
    });
}
