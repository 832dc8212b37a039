"""A format that nothing imports but a registry."""

from daskreg.storage.format import ImageFormat


class Late(ImageFormat):
    name, endings = "late", (".late",)

    def open(self, address):
        raise NotImplementedError
