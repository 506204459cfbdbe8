//! A disk that can be filled: a size-limited tmpfs under a store's data.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::servers::postgres::{is_root, run};
use crate::servers::redis::copy;

const SIZE: &str = "size=1500m,mode=0755";
const BALLAST: &str = "ballast";

pub struct Disk {
    place: PathBuf,
}

// === impl Disk ===

impl Disk {
    /// Moves what lies at `place` onto a disk of its own, which is then mounted there. `None` when mounting is not
    /// permitted.
    pub fn under(place: &Path) -> anyhow::Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let aside = place.with_extension("aside");
        copy(place, &aside)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(place).output()?;
        if !mounted.status.success() {
            std::fs::remove_dir_all(&aside)?;
            return Ok(None);
        }
        let disk = Self { place: place.to_owned() };
        // With its owner and rights: Postgres looks at them.
        run(Command::new("cp").arg("-a").arg(format!("{}/.", aside.display())).arg(place))?;
        run(Command::new("chown").arg(format!("--reference={}", aside.display())).arg(place))?;
        run(Command::new("chmod").arg(format!("--reference={}", aside.display())).arg(place))?;
        std::fs::remove_dir_all(&aside)?;
        Ok(Some(disk))
    }

    /// Leaves not a byte free.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = std::fs::File::create(self.place.join(BALLAST))?;
        let (megabyte, page) = (vec![0_u8; 1 << 20], vec![0_u8; 4096]);
        while ballast.write_all(&megabyte).is_ok() {}
        while ballast.write_all(&page).is_ok() {}
        Ok(())
    }

    pub fn free(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.place.join(BALLAST)).context("the ballast is gone")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever has files open there keeps them until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.place).output();
    }
}
