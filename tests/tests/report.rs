//! `tcptrace report`: a page of a real recording, in a real browser.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use tcptrace_tests::*;

/// Names of processes that would be more than text.
const SERVER: &str = "\"><img src=x:>";
const CLIENT: &str = "<script>x()</sc";

/// All elements a page may have.
const ELEMENTS: &str = "!DOCTYPE a article body code dd desc details div dl dt figcaption figure h1 h2 h3 h4 head \
    header html li line main meta p path rect section span style summary svg table tbody td text th thead \
    title tr ul";

fn report(args: &[&str]) -> Result<Output> {
    let mut command = tcptrace();
    let output = command.arg("report").args(args).stdin(Stdio::null());
    output.output().context("tcptrace does not start")
}

/// A recording of a RST and of refused connections, by processes with such names.
fn record(netns: &Netns, path: &str) -> Result<()> {
    let tracer = trace(netns, &["--event", "all", "--output-file", path])?;
    let (mut client, mut server) = (actor(CLIENT)?, actor(SERVER)?);
    let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
    close_unread(&mut server, &mut client, &pair, 512)?;
    client.call("be_refused", &[1.into(), 3.into()])?;
    tracer.stop()?;
    Ok(())
}

/// The names of the elements in a page that a browser has written out.
fn elements(page: &str) -> impl Iterator<Item = &str> {
    let pieces = page.split('<').skip(1);
    let names = pieces.map(|it| it.split([' ', '>', '\n']).next().unwrap_or_default());
    names.map(|name| name.trim_start_matches('/'))
}

#[test]
fn a_page_asks_for_nothing_and_names_are_text_in_it() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let (recording, page) = (at("events.json"), at("report.html"));
        record(netns, &recording.to_string_lossy())?;
        let args = [
            &*recording.to_string_lossy(),
            "-o",
            &*page.to_string_lossy(),
        ];
        let output = report(&args)?;
        ensure!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr)?;
        ensure!(said.contains("2 findings of "), "{said}");
        let written = fs::read_to_string(&page)?;
        assert_eq!(fs::metadata(&page)?.permissions().mode() & 0o777, 0o600);

        // That both can be seen at all.
        let control = at("control.html");
        let wants = "<img src='http://127.0.0.1:9/'><script>console.error('run')</script>";
        fs::write(&control, wants)?;
        let opened = browser::open(&control)?;
        ensure!(
            opened.console.iter().any(|line| line.contains("run")),
            "{opened:?}"
        );
        ensure!(
            opened.requests.contains("http://127.0.0.1:9/"),
            "{opened:?}"
        );
        // And that the policy of a page would refuse what should ever come into it.
        let (head, body) = written.split_once("<body>").context("a body")?;
        fs::write(&control, format!("{head}<body>{wants}{body}"))?;
        let opened = browser::open(&control)?;
        assert_eq!(opened.requests.len(), 0, "{opened:?}");
        let refused = opened
            .console
            .iter()
            .filter(|line| line.contains("Content Security Policy"));
        assert_eq!(refused.count(), 2, "{:?}", opened.console);

        let opened = browser::open(&page)?;
        assert_eq!(opened.console, [""; 0]);
        assert_eq!(opened.requests.len(), 0, "{:?}", opened.requests);
        for name in [SERVER, CLIENT] {
            let text = name.replace('<', "&lt;").replace('>', "&gt;");
            ensure!(opened.elements.contains(&format!("{text}[")), "no {name}");
        }
        for element in elements(&opened.elements) {
            assert!(ELEMENTS.split(' ').any(|it| it == element), "{element}");
        }
        for cause in ["closed_on_accept", "no_listener"] {
            let id = format!("<h3 id=\"{cause}\">");
            ensure!(opened.elements.contains(&id), "no {cause}");
        }
        Ok(())
    });
}

#[test]
fn a_page_is_light_dark_and_on_paper() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let (recording, page) = (at("events.json"), at("report.html"));
        record(netns, &recording.to_string_lossy())?;
        let args = [
            &*recording.to_string_lossy(),
            "-o",
            &*page.to_string_lossy(),
            "--quiet",
        ];
        let output = report(&args)?;
        ensure!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let (light, dark) = (
            browser::picture(&page, false)?,
            browser::picture(&page, true)?,
        );
        for picture in [&light, &dark] {
            ensure!(picture.starts_with(b"\x89PNG"), "no picture");
        }
        assert_ne!(light, dark);
        assert_eq!(light, browser::picture(&page, false)?, "the same twice");
        let pages = |paper: &[u8]| {
            let text = String::from_utf8_lossy(paper);
            text.matches("/Type /Page\n").count()
        };
        // On paper there is nothing to click: all of the evidence is there.
        let printed = pages(&browser::paper(&page)?);
        let folded = at("folded.html");
        let open = "details::details-content";
        let style = fs::read_to_string(&page)?.replace(open, "nothing");
        fs::write(&folded, style)?;
        let folded = pages(&browser::paper(&folded)?);
        ensure!(
            printed > folded && folded > 0,
            "{printed} pages, {folded} folded"
        );
        Ok(())
    });
}

#[test]
fn the_text_for_a_ticket_goes_to_standard_output() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("events.json");
        let path = path.to_string_lossy();
        record(netns, &path)?;
        let output = report(&["--markdown", &path])?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.starts_with("# TCP failures on "), "{text}");
        ensure!(
            text.contains("\n| `no_listener` | warning | 3 | 1 | "),
            "{text}"
        );
        ensure!(text.contains("\\<script\\>x()\\</sc\\["), "{text}");
        // A later part of the time holds nothing, and says which it was.
        let output = report(&["--markdown", &path, "--from", "2100-01-01T00:00:00Z"])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            text.contains("No failure that does harm was found."),
            "{text}"
        );
        ensure!(
            text.contains("- Asked for: from 2100-01-01 00:00:00.000 UTC"),
            "{text}"
        );
        ensure!(
            text.contains("- Not seen: "),
            "coverage holds for all of it: {text}"
        );
        Ok(())
    });
}

#[test]
fn what_cannot_be_done_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let there = directory.path().join("there.html");
    fs::write(&there, "kept").expect("the directory is ours");
    let run = |args: &[&str]| {
        let output = report(args).expect("tcptrace starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    // The order of the words is easily mistaken, and a recording is not to be made anew.
    let path = there.to_string_lossy();
    let (code, said) = run(&["/dev/null", "-o", &path]);
    assert!(
        code == Some(2) && said.contains("remove it, or choose another name"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&there).expect("it is there"), "kept");
    let (code, said) = run(&["/dev/null", "-o", "/nowhere/report.html"]);
    assert!(
        code == Some(1) && said.contains("create its directory first"),
        "{said}"
    );
    let (code, said) = run(&["/proc/version"]);
    assert!(code == Some(1) && said.contains("no JSON object"), "{said}");
    assert!(!Path::new("/nowhere").exists());
}
