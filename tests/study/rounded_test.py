"""scripts/study/rounded.py: numbers rounded to a format, and the products that multiply them.

    rounded_test.py FOLDER-OF-SCRIPTS
"""

import sys
import unittest

import torch
import torch.nn.functional as F

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv.pop(1))

import rounded  # noqa: E402


def near(x, kind):
    """What the rounded numbers stand for."""
    numbers, scale = rounded.rounded(x, kind)
    return numbers * scale


class Rounded(unittest.TestCase):

    def test_integers(self):
        x = torch.tensor([-12.7, 0.04, 0.06, 5.0])  # a step of 0.1
        self.assertTrue(torch.allclose(near(x, "int8"),
                                       torch.tensor([-12.7, 0.0, 0.1, 5.0])))
        numbers, scale = rounded.rounded(torch.tensor([14.0, 1.2, -4.8]), "int4")
        self.assertEqual((numbers.tolist(), scale.item()), ([7.0, 1.0, -2.0], 2.0))

    def test_fp8(self):
        # The largest number is scaled to 300; e4m3 has steps of 32 there and of 2^-9 near 0.
        x = torch.tensor([300.0, 255.0, 17.0, 17.1, 2.0**-10, -1.0]) / 1024
        expected = torch.tensor([288.0, 256.0, 16.0, 18.0, 0.0, -1.0]) / 1024
        self.assertTrue(torch.equal(near(x, "fp8"), expected))

    def test_zeros_stay(self):
        for kind in rounded.FORMATS:
            self.assertEqual(near(torch.zeros(3), kind).tolist(), [0.0] * 3)


class Products(unittest.TestCase):

    def setUp(self):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(5, 8, generator=generator)
        self.weight, self.other = torch.randn(2, 6, 8, generator=generator).unbind()

    def product(self, what, weight):
        with rounded.Projections([self.weight], "int4", what):
            return F.linear(self.x, weight)

    def test_parts(self):
        x, weight = near(self.x, "int4"), near(self.weight, "int4")
        for what, expected in (("weights", F.linear(self.x, weight)),
                               ("inputs", F.linear(x, self.weight)), ("both", F.linear(x, weight))):
            self.assertTrue(torch.allclose(self.product(what, self.weight), expected, atol=1e-6))

    def test_other_products_are_exact(self):
        self.assertTrue(torch.equal(self.product("both", self.other), F.linear(self.x, self.other)))

    def test_outliers(self):
        x = torch.ones(4, 8)
        x[0, 0] = 9.0
        with rounded.Outliers([self.weight]) as outliers:
            F.linear(torch.ones(2, 8), self.weight)
            F.linear(x, self.weight)
        self.assertAlmostEqual(outliers.largest[id(self.weight)].item(), 9 / ((31 + 81) / 32) ** 0.5,
                               places=5)


if __name__ == "__main__":
    unittest.main()
