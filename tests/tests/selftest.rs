//! `tcptrace selftest` on this kernel: every failure is seen, and named once by the right cause.

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;
use tcptrace::event::Cause;
use tcptrace_tests::tcptrace;

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("tcptrace does not start");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value[name].as_array();
    list.unwrap_or_else(|| panic!("no {name} in {value:#}"))
}

#[test]
fn every_cause_is_named_once_or_its_absence_explained() {
    let (code, stdout, stderr) = run(tcptrace().args(["selftest", "-o", "json"]));
    let report: Value = serde_json::from_str(&stdout).expect(&stderr);
    for failure in list(&report, "failures") {
        assert_eq!(failure["passed"], true, "{failure:#}");
        // On this kernel nothing is excused as invisible, and only what changes the whole host is
        // left out.
        if let Some(reason) = failure["not_shown"].as_str() {
            assert!(reason.contains("--allow-host-changes"), "{failure:#}");
            continue;
        }
        let (checks, findings) = (list(failure, "checks"), list(failure, "findings"));
        assert!(!checks.is_empty(), "{failure:#}");
        assert_eq!(findings.is_empty(), failure["name"] == "states");
        for check in checks.iter().chain(findings) {
            assert_eq!(check["verdict"], "ok", "{failure:#}");
        }
        for finding in findings {
            assert_eq!(finding["told"], 1, "{failure:#}");
        }
        assert!(list(failure, "unexpected").is_empty(), "{failure:#}");
    }
    let causes = list(&report, "causes");
    let names: Vec<_> = causes.iter().map(|it| it["cause"].as_str()).collect();
    let all: Vec<_> = Cause::ALL.iter().map(|it| Some(it.as_str())).collect();
    assert_eq!(names, all);
    let unnamed = causes.iter().filter(|it| list(it, "named_by").is_empty());
    let unnamed: Vec<_> = unnamed.collect();
    assert!(
        matches!(&unnamed[..], [one] if one["cause"] == "tcp_memory_pressure"
            && one["reason"].as_str().is_some_and(|why| why.contains("tcp_max_orphans"))),
        "{unnamed:#?}"
    );
    assert!(list(&report, "stray").is_empty(), "{report:#}");
    assert_eq!((code, &report["passed"]), (Some(0), &Value::Bool(true)));
}

#[test]
fn some_can_be_chosen_and_tell_their_story() {
    let arguments = ["selftest", "no_listener", "linger_zero", "--stories"];
    let (code, stdout, stderr) = run(tcptrace().args(arguments));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("2 of 2 failures were seen"), "{stdout}");
    // The blocks of their findings: one for each way the sockets may talk.
    for row in ["what", "why", "who", "evidence", "fix"] {
        let begin = format!("  |     {row} ");
        let rows = stdout.lines().filter(|line| line.starts_with(&begin));
        assert!(rows.count() >= 6, "{row}: {stdout}");
    }
}

#[test]
fn a_single_one_is_told_of_in_the_singular() {
    let (code, stdout, stderr) = run(tcptrace().args(["selftest", "linger_zero"]));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("1 of 1 failure was seen"), "{stdout}");
}

#[test]
fn what_it_cannot_do_it_says() {
    let (code, _, stderr) = run(tcptrace().args(["selftest", "bad_luck"]));
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("bad_luck") && stderr.contains("linger_zero"),
        "{stderr}"
    );
    let (code, _, stderr) = run(tcptrace().arg("selftest").uid(65534).gid(65534));
    assert!(code != Some(0) && stderr.contains("sudo"), "{stderr}");
}
