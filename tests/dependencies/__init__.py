"""What resolves the dependencies anew, and compares them with published vulnerabilities."""
