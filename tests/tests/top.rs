//! `tcptrace top` in a real terminal: it shows what is wrong, answers keys, and leaves the terminal as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcptrace_tests::terminal::Terminal;
use tcptrace_tests::*;

/// The terminal's modes before and after a command, which notes its process and its status.
fn script(directory: &Path, command: &str) -> String {
    let at = directory.display();
    format!(
        "stty -g > {at}/before; echo before the screen; \
         sh -c 'echo $$ > {at}/pid; exec {command}'; \
         echo ended with $?; stty -g > {at}/after; exec sleep 1000"
    )
}

fn top(netns: &Netns, directory: &Path, size: (u16, u16), args: &str) -> Result<Terminal> {
    let program = tcptrace();
    let program = program.get_program().display();
    let netns = netns.path();
    let command = format!(
        "env LANG=C.UTF-8 {program} top --netns {} {args}",
        netns.display()
    );
    Terminal::start(directory, size, &script(directory, &command))
}

/// The terminal is as it was before the screen.
fn is_as_before(terminal: &Terminal, directory: &Path, ended: &str) -> Result<()> {
    let screen = terminal.wait_for("the end", |screen| screen.contains(ended))?;
    ensure!(screen.starts_with("before the screen"), "{screen}");
    ensure!(terminal.modes()? == (false, true), "{:?}", terminal.modes());
    let before = fs::read_to_string(directory.join("before"))?;
    let mut after = String::new();
    wait_until("the modes", || {
        after = fs::read_to_string(directory.join("after")).unwrap_or_default();
        Ok(after.ends_with('\n'))
    })?;
    ensure!(before == after, "{before} {after}");
    Ok(())
}

fn pid(directory: &Path) -> Result<Pid> {
    let pid = fs::read_to_string(directory.join("pid"))?;
    Ok(Pid::from_raw(pid.trim().parse()?))
}

/// The line of a screen that begins with this, whatever row is chosen.
fn row<'a>(screen: &'a str, begins: &str) -> Option<&'a str> {
    rows(screen).find(|row| row.starts_with(begins))
}

fn rows(screen: &str) -> impl Iterator<Item = &str> {
    let lines = screen.lines();
    lines.map(|line| line.trim_start_matches(['▸', ' ']))
}

/// A process that leaves five connections open, and a listener whose queue is full.
struct Trouble {
    leaky: Actor,
    server: Actor,
    _client: Actor,
    full: String,
}

impl Trouble {
    fn new() -> Result<Self> {
        let (mut leaky, mut server, mut client) =
            (actor("leaky")?, actor("server")?, actor("client")?);
        for _ in 0..5 {
            let pair = connected(&mut leaky, &mut client, LOOPBACKS[0])?;
            client.close(pair.client)?;
            leaky.wait_for(pair.server, libc::POLLRDHUP)?;
        }
        let (listener, full) = listen(&mut server, LOOPBACKS[0], 1)?;
        client.connected(full)?;
        client.connected(full)?;
        server.wait_for_queue(listener, 2)?;
        Ok(Self {
            leaky,
            server,
            _client: client,
            full: full.to_string(),
        })
    }

    /// Both are on the screen.
    fn shows(&self, screen: &str) -> bool {
        let leaky = row(screen, &format!("leaky[{}]", self.leaky.pid()));
        let columns: Vec<_> = leaky.unwrap_or_default().split_whitespace().collect();
        let full = row(screen, &self.full).unwrap_or_default();
        columns.get(3) == Some(&"5")
            && full.contains("!2/1")
            && full.contains(&format!("[{}]", self.server.pid()))
    }
}

#[test]
fn a_leak_and_a_full_queue_show_and_keys_are_answered() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let mut trouble = Trouble::new()?;
        let terminal = top(netns, directory.path(), (100, 30), "")?;
        terminal.wait_for("both", |screen| trouble.shows(screen))?;
        ensure!(terminal.modes()? == (true, false), "{:?}", terminal.modes());

        // An event that comes now is on the screen, with its finding.
        let mut client = actor("client")?;
        let pair = connected(&mut trouble.server, &mut client, LOOPBACKS[0])?;
        pair.exchange(&mut trouble.server, &mut client)?;
        close_unread(&mut trouble.server, &mut client, &pair, 100)?;
        let server = format!("server[{}]", trouble.server.pid());
        terminal.wait_for("a RST", |screen| {
            let columns = row(screen, &server).map(|row| row.split_whitespace().nth(1));
            columns == Some(Some("1")) && screen.contains("closed_with_unread_data")
        })?;

        // A filter leaves out the others, and Escape takes it away.
        terminal.press(&["/", "l", "e", "a", "k", "y", "Enter"])?;
        terminal.wait_for("a filter", |screen| {
            row(screen, "leaky[").is_some() && row(screen, "server[").is_none()
        })?;
        terminal.press(&["Escape"])?;
        terminal.wait_for("no filter", |screen| row(screen, "server[").is_some())?;

        // By name, the fifth order after the first.
        terminal.press(&["s", "s", "s", "s", "s"])?;
        terminal.wait_for("the order", |screen| {
            let place = |name| rows(screen).position(|row| row.starts_with(name));
            screen.contains("order: name") && place("leaky[") < place("server[")
        })?;

        terminal.press(&["Tab", "Enter"])?;
        terminal.wait_for("a listener", |screen| {
            screen.contains("full: 2 wait for accept, the limit is 1")
                && screen.contains("the smaller of what listen() was asked for")
        })?;
        terminal.press(&["q", "Tab", "Enter"])?;
        terminal.wait_for("a finding", |screen| {
            screen.contains("cause  ") && screen.contains("Evidence")
        })?;
        terminal.press(&["Escape", "?"])?;
        terminal.wait_for("the help", |screen| screen.contains("Shift-Tab"))?;
        terminal.press(&["?"])?;

        terminal.resize(160, 45)?;
        terminal.wait_for("room for a history", |screen| {
            screen.contains("EVENTS A SECOND") && trouble.shows(screen)
        })?;
        terminal.resize(30, 5)?;
        terminal.wait_for("no room", |screen| screen.contains("at least"))?;
        terminal.resize(80, 24)?;
        terminal.wait_for("room again", |screen| trouble.shows(screen))?;

        // What stands still does not change, and goes on from where it is.
        terminal.press(&["p"])?;
        terminal.wait_for("a pause", |screen| screen.contains("PAUSED"))?;
        let pair = connected(&mut trouble.leaky, &mut client, LOOPBACKS[0])?;
        client.close(pair.client)?;
        terminal.press(&["1", "s"])?;
        let drawn = terminal.wait_for("another order", |it| it.contains("order: trouble"))?;
        ensure!(trouble.shows(&drawn), "{drawn}");
        terminal.press(&["p"])?;
        terminal.wait_for("the sixth", |screen| {
            let columns = row(screen, "leaky[").map(|row| row.split_whitespace().nth(3));
            columns == Some(Some("6"))
        })?;

        terminal.press(&["q"])?;
        is_as_before(&terminal, directory.path(), "ended with 0")
    });
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    in_netns(|netns| {
        let trouble = Trouble::new()?;
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            let directory = tempfile::tempdir()?;
            let terminal = top(netns, directory.path(), (80, 24), "")?;
            terminal.wait_for("both", |screen| trouble.shows(screen))?;
            kill(pid(directory.path())?, signal)?;
            is_as_before(&terminal, directory.path(), "ended with 0")?;
        }
        Ok(())
    });
}

#[test]
fn a_stop_leaves_the_terminal_and_goes_on_where_it_was() {
    in_netns(|netns| {
        let trouble = Trouble::new()?;
        let directory = tempfile::tempdir()?;
        let terminal = top(netns, directory.path(), (80, 24), "")?;
        terminal.wait_for("both", |screen| trouble.shows(screen))?;
        let pid = pid(directory.path())?;
        for signal in [None, Some(Signal::SIGTSTP)] {
            match signal {
                Some(signal) => kill(pid, signal)?,
                None => terminal.press(&["C-z"])?,
            }
            wait_for_process_state(pid.as_raw().cast_unsigned(), 'T')?;
            ensure!(terminal.modes()? == (false, true), "{:?}", terminal.modes());
            kill(pid, Signal::SIGCONT)?;
            terminal.wait_for("both again", |screen| trouble.shows(screen))?;
            ensure!(terminal.modes()? == (true, false), "{:?}", terminal.modes());
        }
        terminal.press(&["C-c"])?;
        is_as_before(&terminal, directory.path(), "ended with 0")
    });
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was_and_is_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let test = std::env::current_exe()?;
    let built = test.parent().and_then(Path::parent);
    let program = built.context("a test outside target")?.join("panics");
    let go_on = directory.path().join("go-on");
    let command = format!("{} {}", program.display(), go_on.display());
    let terminal = Terminal::start(
        directory.path(),
        (80, 24),
        &script(directory.path(), &command),
    )?;
    terminal.wait_for("the screen", |screen| screen.starts_with("this screen"))?;
    fs::write(go_on, "")?;
    // The status of a panic.
    is_as_before(&terminal, directory.path(), "ended with 101")?;
    let screen = terminal.screen()?;
    ensure!(
        screen.contains("a panic of the thread that traces"),
        "{screen}"
    );
    Ok(())
}

#[test]
fn a_recording_is_shown_at_its_pace_without_colour_and_without_privileges() {
    in_netns(|netns| {
        let recording = tempfile::tempdir()?;
        // Whoever plays it is another user.
        fs::set_permissions(recording.path(), fs::Permissions::from_mode(0o755))?;
        let path = recording.path().join("recorded.json");
        let file = path.to_str().context("a path of text")?;
        let tracer = trace(netns, &["--event", "all", "--output-file", file])?;
        let (mut server, mut client) = (actor("server")?, actor("client")?);
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        pair.exchange(&mut server, &mut client)?;
        close_unread(&mut server, &mut client, &pair, 100)?;
        Events::of(tracer)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;

        let directory = tempfile::tempdir()?;
        let program = tcptrace();
        let program = program.get_program().display();
        let command = format!(
            "setpriv --reuid 65534 --clear-groups --inh-caps=-all \
             {program} top --color never --replay {file} --speed 100"
        );
        let script = script(directory.path(), &command);
        let terminal = Terminal::start(directory.path(), (80, 24), &script)?;
        let screen = terminal.wait_for("its finding", |screen| {
            screen.contains("closed_with_unread_data")
        })?;
        let server = row(&screen, &format!("server[{}]", server.pid()));
        let sent = server.and_then(|row| row.split_whitespace().nth(1));
        ensure!(sent == Some("1"), "{screen}");
        ensure!(screen.starts_with("recorded.json x100"), "{screen}");
        terminal.press(&["q"])?;
        is_as_before(&terminal, directory.path(), "ended with 0")
    });
}

#[test]
fn what_makes_no_sense_is_refused_with_the_remedy() -> Result<()> {
    for (args, words) in [
        (
            &["-o", "json"][..],
            "--output says nothing to `tcptrace top`",
        ),
        (&["--", "true"], "-- CMD says nothing"),
        (&[], "top draws on a terminal"),
        (&["--replay", "x", "--pid", "1"], "cannot be used with"),
        (&["--speed", "2"], "--replay"),
        (&["--replay", "x", "--speed", "0"], "0.01"),
    ] {
        let output = tcptrace().arg("top").args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{args:?}: {output:?}");
        ensure!(said.contains(words), "{args:?}: {said}");
    }
    Ok(())
}
