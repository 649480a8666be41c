//! `tcptrace selftest` on this kernel: everything is seen and named.

use std::os::unix::process::CommandExt;
use std::process::Command;

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

#[test]
fn every_failure_is_seen_and_named() {
    let (code, stdout, stderr) = run(tcptrace().args(["selftest", "-o", "json"]));
    let report: serde_json::Value = serde_json::from_str(&stdout).expect(&stderr);
    let failures = report["failures"].as_array().expect("failures");
    assert_eq!(failures.len(), 19);
    for failure in failures {
        assert_eq!(failure["passed"], true, "{failure:#}");
        let checks = failure["checks"].as_array().expect("checks");
        // On this kernel nothing is excused as invisible.
        assert!(
            checks.iter().all(|check| check["verdict"] == "ok"),
            "{failure:#}"
        );
        assert!(!checks.is_empty(), "{failure:#}");
    }
    assert_eq!(
        (code, &report["passed"]),
        (Some(0), &serde_json::Value::Bool(true))
    );
}

#[test]
fn some_can_be_chosen_and_tell_their_story() {
    let arguments = ["selftest", "no_listener", "linger_zero", "--stories"];
    let (code, stdout, stderr) = run(tcptrace().args(arguments));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("2 of 2 failures were seen"), "{stdout}");
    assert!(
        stdout
            .lines()
            .filter(|line| line.starts_with("  | "))
            .count()
            >= 2,
        "{stdout}"
    );
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
