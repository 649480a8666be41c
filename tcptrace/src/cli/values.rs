//! The values of options, as people write them.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use ipnet::IpNet;

use crate::event::{Errno, Timestamp};

pub(super) fn pid(text: &str) -> Result<u32, String> {
    let pid: NonZeroU32 = text.parse().map_err(
        |_| "not the number of a process; by name: --comm NAME, or --pid \"$(pgrep -d, NAME)\"",
    )?;
    Ok(pid.get())
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    let port: NonZeroU16 = text
        .parse()
        .map_err(|_| "not a port from 1 to 65535; several are separated by commas")?;
    Ok(port.get())
}

/// A network, or an address that stands for itself.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .or_else(|_| {
            text.parse::<std::net::IpAddr>()
                .map(IpNet::from)
                .map_err(|_| {
                    "not a network such as 10.0.0.0/8 or 2001:db8::/32, nor an address".to_owned()
                })
        })
}

pub(super) fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("no user of that name on this host; give the number".to_owned()),
        Err(error) => Err(format!(
            "users cannot be looked up ({error}); give the number"
        )),
    }
}

pub(super) fn errno(text: &str) -> Result<Errno, String> {
    Errno::from_name(text)
        .ok_or_else(|| "not the name of an error such as EPIPE or ECONNRESET".to_owned())
}

/// `0.5` or `60`.
pub(super) fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok();
    let speed = speed.filter(|speed| (0.01..=1_000_000.0).contains(speed));
    speed.ok_or_else(|| "not a number from 0.01 to 1000000".to_owned())
}

/// `90s`, `5m`, `1h 30m`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| "not a time that can be waited for".to_owned());
    }
    let duration: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "not a time such as 500ms, 30s or 5m".to_owned())?;
    duration
        .try_into()
        .map_err(|_| "a time before now cannot be waited for".to_owned())
}

/// `2026-11-20T11:10:03Z`, or the local time of this host without a zone.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let zoned = || {
        let local: jiff::civil::DateTime = text.parse().ok()?;
        let zoned = local.to_zoned(jiff::tz::TimeZone::system()).ok()?;
        Some(zoned.timestamp())
    };
    let moment = text.parse().ok().or_else(zoned);
    moment
        .and_then(|moment: jiff::Timestamp| u64::try_from(moment.as_nanosecond()).ok())
        .map(Timestamp)
        .ok_or_else(|| "not a time such as 2026-11-20T11:10:03Z or 2026-11-20T11:10".to_owned())
}

/// `16MiB`, `64KiB`, `1GiB` (or `16M`, `64K`, `1G`), or a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "not a size such as 64KiB, 16MiB or 1GiB".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .filter(|&size| size > 0)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(size("16KiB"), Ok(16 << 10));
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "0", "MiB", "1.5M", "12X", "99999999999999G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        for wrong in ["-1", "-5s", "soon", "inf"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lone_address_is_a_network_of_one() {
        assert_eq!(
            network("10.1.2.3/8").map(|n| n.to_string()),
            Ok("10.0.0.0/8".to_owned())
        );
        assert_eq!(
            network("::1").map(|n| n.to_string()),
            Ok("::1/128".to_owned())
        );
        assert!(network("10.0.0.0/33").is_err());
    }
}
