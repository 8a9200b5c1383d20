"""Checks the Android project's XML: well-formed, every resource that code or XML names exists, and the promises of the
manifest that a release depends on."""
import pathlib
import re
import sys
import xml.etree.ElementTree as tree

ANDROID = "{http://schemas.android.com/apk/res/android}"


def resources(module: pathlib.Path) -> set[str]:
    found = set()
    for path in (module / "src/main/res").rglob("*.xml"):
        root = tree.parse(path).getroot()
        if path.parent.name == "values":
            found |= {f"{item.tag}/{item.get('name')}" for item in root}
        else:
            found.add(f"{path.parent.name}/{path.stem}")
        for item in root.iter():
            identifier = item.get(f"{ANDROID}id", "")
            if identifier.startswith("@+id/"):
                found.add("id/" + identifier[5:])
    return found


def named(module: pathlib.Path) -> set[str]:
    names = set()
    for path in (module / "src").rglob("*.kt"):
        names |= {f"{kind}/{name}" for kind, name in re.findall(r"(?<![.\w])R\.(\w+)\.(\w+)", path.read_text())}
    for path in (module / "src").rglob("*.xml"):
        names |= set(re.findall(r'"@(?!\+|android:)([a-z]+/\w+)"', path.read_text()))
    return names


def main(root: pathlib.Path) -> int:
    faults = []
    library, sample = root / "secateur", root / "sample"
    own = resources(library)
    for module, known in ((library, own), (sample, own | resources(sample))):
        faults += [f"{module.name}: no resource {name}" for name in sorted(named(module) - known)]
    manifest = tree.parse(library / "src/main/AndroidManifest.xml").getroot()
    permissions = {item.get(f"{ANDROID}name") for item in manifest.findall("uses-permission")}
    for name in ("FOREGROUND_SERVICE", "FOREGROUND_SERVICE_SPECIAL_USE", "POST_NOTIFICATIONS", "INTERNET"):
        if f"android.permission.{name}" not in permissions:
            faults.append(f"no permission {name}")
    for service in manifest.iter("service"):
        name = service.get(f"{ANDROID}name")
        if service.get(f"{ANDROID}exported") != "false":
            faults.append(f"{name} is exported")
        source = library / "src/main/kotlin" / (name.replace(".", "/") + ".kt")
        if not source.exists():
            faults.append(f"{name} has no source")
        if service.get(f"{ANDROID}foregroundServiceType") == "specialUse":
            properties = {item.get(f"{ANDROID}name") for item in service.findall("property")}
            if "android.app.PROPERTY_SPECIAL_USE_FGS_SUBTYPE" not in properties:
                faults.append(f"{name} does not say what its special use is")
    network = tree.parse(library / "src/main/res/xml/secateur_network_security.xml").getroot()
    if network.find("base-config").get("cleartextTrafficPermitted") != "false":
        faults.append("cleartext is allowed beyond this device")
    if {item.text for item in network.iter("domain")} != {"localhost", "127.0.0.1"}:
        faults.append("cleartext domains")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


sys.exit(main(pathlib.Path(sys.argv[1])))
