/**
 * Fetches the libraries of the explorer, and axe for its tests, from npm: `make vendor`.
 *
 * `packages.json` has the version, hash and licence of each. Browsers cannot resolve the bare names that the packages
 * import each other by ("preact"), and an import map would be an inline script: the names become relative paths.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const FOLDER = dirname(fileURLToPath(import.meta.url));
const ROOT = join(FOLDER, "..", "..", "..");

const packages = JSON.parse(readFileSync(join(FOLDER, "packages.json"), "utf8"));
const files = new Map(packages.flatMap(({ imported_as: names = {} }) => Object.entries(names)));
const downloads = mkdtempSync(join(tmpdir(), "vendor-"));
for (const { name, version, integrity, files: wanted, licence_file: licence, tests_only: isForTests } of packages) {
  const packed = execFileSync("npm", ["pack", `${name}@${version}`, "--silent"], { cwd: downloads, encoding: "utf8" });
  const archive = join(downloads, packed.trim().split("\n").pop());
  const hash = `sha512-${createHash("sha512").update(readFileSync(archive)).digest("base64")}`;
  if (hash !== integrity) throw new Error(`${name}@${version} is not the package that was reviewed: got ${hash}`);
  for (const [source, target] of Object.entries({ ...wanted, LICENSE: licence })) {
    const content = execFileSync("tar", ["-xzOf", archive, `package/${source}`], {
      encoding: "utf8",
      maxBuffer: 2 ** 24,
    });
    const text = content
      .replace(/\n?\/\/# sourceMappingURL=.*/g, "")
      .replace(/from"([^"]+)"/g, (whole, bare) => (files.has(bare) ? `from"./${files.get(bare)}"` : whole));
    const path = join(isForTests ? ROOT : FOLDER, target);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, `${text.trimEnd()}\n`);
  }
}
rmSync(downloads, { recursive: true });
