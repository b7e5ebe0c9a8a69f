"""Images, labels, class names, the evaluation, prepared folders, network inputs."""
