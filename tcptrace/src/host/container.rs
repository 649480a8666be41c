//! Which container a process is in, by the path of its cgroup: every runtime puts the container's id
//! there, and the kubelet the pod's uid. Names are in no file of the host; whoever collects the records
//! knows them by these ids.

use crate::event::Container;

/// Hexadecimal digits of an id, in every runtime there is.
/// <https://github.com/opencontainers/runtime-spec/blob/v1.2.1/runtime.md#state> leaves it open; docker,
/// containerd's CRI plugin, cri-o and podman all take 256 random bits.
const ID_DIGITS: usize = 64;

/// The container of a process, from the text of its `/proc/PID/cgroup`: of cgroup v1, v2 or both, where
/// every line names a path of its own and all name the same container. `None` for a process of the host.
///
/// From within a cgroup namespace the paths of others begin with `/..` and still hold the ids. Those of
/// the namespace's own processes begin below them: a tracer in a container of its own does not know its
/// own container's id.
#[must_use]
pub fn parse(text: &str) -> Option<Container> {
    // `hierarchy:controllers:path`, and the path may hold colons.
    text.lines()
        .find_map(|line| of_path(line.splitn(3, ':').nth(2)?))
}

/// The innermost container of a path, such as
///
/// - `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b4c…_9f.slice/cri-containerd-0a….scope`
/// - `/kubepods/burstable/pod1b4c…-9f/0a…`
/// - `/system.slice/containerd.service/kubepods-pod1b4c…_9f.slice:cri-containerd:0a…`
/// - `/system.slice/docker-0a….scope`, `/docker/0a…`
/// - `/machine.slice/libpod-0a….scope/container`
fn of_path(path: &str) -> Option<Container> {
    let (mut id, mut pod) = (None, None);
    for part in path.split(['/', ':']) {
        if let Some(uid) = pod_uid(part) {
            // What is outside the pod is another container: a node that runs in one.
            (id, pod) = (None, Some(uid));
        } else if let Some(inner) = container_id(part) {
            id = Some(inner);
        }
    }
    Some(Container {
        id: id?.to_owned(),
        pod,
    })
}

/// `0a…`, `docker-0a….scope`.
fn container_id(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let (runtime, id) = part.rsplit_once('-').unwrap_or(("", part));
    // The monitor of a container is outside it, in a cgroup named after it:
    // <https://github.com/containers/podman/blob/v5.6.0/libpod/oci_conmon_linux.go>
    let is_monitor = runtime.ends_with("conmon");
    (!is_monitor && id.len() == ID_DIGITS && id.bytes().all(is_hex)).then_some(id)
}

/// `pod1b4c…-9f`, and as systemd's names have it, where a hyphen means a level: `kubepods-pod1b4c…_9f.slice`.
/// A static pod's uid is a hash without hyphens.
/// <https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/cm/cgroup_manager_linux.go>
fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (before, uid) = part.rsplit_once("pod")?;
    if !before.is_empty() && !before.ends_with('-') {
        return None;
    }
    let is_uuid = uid.len() == 36
        && uid.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => is_hex(byte),
        });
    let is_hash = uid.len() == 32 && uid.bytes().all(is_hex);
    (is_uuid || is_hash).then(|| uid.replace('_', "-"))
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const OUTER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
    const UID: &str = "1b4c6d7e-0123-4567-89ab-cdef01234567";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn every_runtime_is_known() {
        let slice_uid = UID.replace('-', "_");
        let kubepods = format!("kubepods-burstable-pod{slice_uid}.slice");
        let slice = format!("/kubepods.slice/kubepods-burstable.slice/{kubepods}");
        for (path, pod) in [
            (format!("/docker/{ID}"), None),
            (format!("/docker/{ID}/init.scope"), None),
            (format!("/system.slice/docker-{ID}.scope"), None),
            (format!("/system.slice/nerdctl-{ID}.scope"), None),
            (format!("/machine.slice/libpod-{ID}.scope/container"), None),
            (format!("/libpod_parent/libpod-{ID}"), None),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"
                ),
                None,
            ),
            (
                format!("/system.slice/web.service/libpod-payload-{ID}"),
                None,
            ),
            (format!("{slice}/cri-containerd-{ID}.scope"), Some(UID)),
            (format!("{slice}/crio-{ID}.scope"), Some(UID)),
            (format!("{slice}/docker-{ID}.scope"), Some(UID)),
            (
                format!("/kubepods.slice/kubepods-pod{HASH}.slice/cri-containerd-{ID}.scope"),
                Some(HASH),
            ),
            (format!("/kubepods/besteffort/pod{UID}/{ID}"), Some(UID)),
            (format!("/kubepods/pod{UID}/crio-{ID}"), Some(UID)),
            (
                format!("/system.slice/containerd.service/{kubepods}:cri-containerd:{ID}"),
                Some(UID),
            ),
            // From within a cgroup namespace.
            (
                format!("/../../{kubepods}/cri-containerd-{ID}.scope"),
                Some(UID),
            ),
            (format!("/../cri-containerd-{ID}.scope"), None),
            // A node in a container, and a container in a container.
            (
                format!("/docker/{OUTER}/kubelet/kubepods/pod{UID}/{ID}"),
                Some(UID),
            ),
            (format!("/kubepods/pod{UID}/{OUTER}/docker/{ID}"), Some(UID)),
        ] {
            let expected = Container {
                id: ID.to_owned(),
                pod: pod.map(str::to_owned),
            };
            for text in [
                format!("0::{path}\n"),
                format!("12:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"),
                format!("2:freezer:/\n1:name=systemd:{path}\n0::/system.slice/x.service\n"),
            ] {
                assert_eq!(parse(&text).as_ref(), Some(&expected), "{text}");
            }
        }
    }

    #[test]
    fn processes_of_the_host_are_in_none() {
        for path in [
            "/".to_owned(),
            "/system.slice/nginx.service".to_owned(),
            "/user.slice/user-1000.slice/session-3.scope".to_owned(),
            "/kubepods.slice".to_owned(),
            format!("/kubepods/pod{UID}"),
            format!("/docker/{OUTER}/kubelet/kubepods/pod{UID}"),
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/kubepods/pod{UID}/crio-conmon-{ID}.scope"),
            format!("/machine.slice/machine-libpod_pod_{ID}.slice"),
            format!("/docker/{}", &ID[1..]),
            format!("/docker/{}", ID.to_uppercase()),
        ] {
            assert_eq!(parse(&format!("0::{path}\n")), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_found_wherever_a_runtime_puts_it(
            id in "[0-9a-f]{64}",
            uid in "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            above in "(/[a-z]{1,12}(\\.slice|\\.service)?){0,4}",
            runtime in "(docker-|crio-|cri-containerd-|libpod-|)",
            below in "(/[a-z]{1,12}(\\.scope)?){0,2}",
            is_slice in any::<bool>(),
            controllers in "(0:|[1-9]:[a-z,]{0,12}|1:name=systemd)",
        ) {
            let (pod, suffix) = if is_slice {
                (format!("kubepods-pod{}.slice", uid.replace('-', "_")), ".scope")
            } else {
                (format!("pod{uid}"), "")
            };
            let text = format!("{controllers}:{above}/{pod}/{runtime}{id}{suffix}{below}\n");
            prop_assert_eq!(parse(&text), Some(Container { id, pod: Some(uid) }));
        }

        #[test]
        fn whatever_a_path_holds_an_id_is_an_id(text in "([0-9]:[a-z]{0,3}:)?[/:a-f0-9pod._-]{0,200}") {
            if let Some(container) = parse(&text) {
                prop_assert!(container.id.len() == ID_DIGITS && text.contains(&container.id));
            }
        }
    }
}
